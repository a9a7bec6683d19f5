"""What the exit status of a replica tells its supervisor. Status 0 follows SIGTERM or SIGINT."""

#: The replica cannot go on, but a new start may help: start it again. (EX_TEMPFAIL of sysexits.h)
EXIT_AGAIN = 75
#: The settings, the credentials or the server do not work: a new start will not help. (EX_CONFIG of sysexits.h)
EXIT_SETUP = 78
