"""The settings of Celery that its optimising guide gives for short tasks."""

#: A large prefetch, no events and a small result.
SHORT_TASKS = {
    "worker_prefetch_multiplier": 128,
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "result_expires": 60,
    "result_extended": False,
    "task_serializer": "json",
    "broker_connection_retry_on_startup": True,
}
