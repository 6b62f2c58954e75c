/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "privcmd.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

struct hypercall {
	uint64_t op, arg[5];
};

#define IOCTL_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))

int open_privcmd(void)
{
	return open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
}

int hypercall(int privcmd, uint64_t op, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
	struct hypercall call = { op, { arg0, arg1, arg2 } };

	return ioctl(privcmd, IOCTL_HYPERCALL, &call);
}

void *locked_memory(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return at == MAP_FAILED || mlock(at, size) ? NULL : at;
}
