/* Preloaded into QEMU: it drops an expired timer on request. */
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* If the file $LOSE_A_TIMER exists: drop one expired timer, and remove the file. */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *time, const sigset_t *mask)
{
	int (*real)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *) =
		dlsym(RTLD_NEXT, "ppoll");
	const char *lose = getenv("LOSE_A_TIMER");
	int ready = real(fds, count, time, mask);

	if (!ready && time && (time->tv_sec || time->tv_nsec) && lose && !unlink(lose))
		ready = real(fds, count, NULL, mask);
	return ready;
}
