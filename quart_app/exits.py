"""The exit statuses of a replica and of `mesh`. Status 0 follows SIGTERM or SIGINT."""

#: The replica cannot go on, but a new start may help. (EX_TEMPFAIL of sysexits.h)
EXIT_AGAIN = 75
#: The settings, the credentials or the Redis do not work, so a new start does not help. (EX_CONFIG of sysexits.h)
EXIT_SETUP = 78
