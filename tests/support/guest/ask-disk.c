// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * ask-disk DEVICE [wait]: what a disk answers to ioctl(2), a line each; with "wait" it prints "open"
 * first and waits for a line on its standard input:
 *
 * geometry HEADS SECTORS CYLINDERS
 * cdrom yes|no             whether it is a CD-ROM drive
 * multisession zero|other  what its structure holds afterwards
 * nowhere ERRNO            the answer to that with an address that is none
 * other ERRNO              the answer to a request that no disk knows
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/cdrom.h>
#include <linux/hdreg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define UNKNOWN _IO('X', 0x7e)

int main(int argc, char **argv)
{
	int disk = argc > 1 ? open(argv[1], O_RDONLY | O_NONBLOCK) : -1;
	struct hd_geometry geometry = { 0 };
	struct cdrom_multisession session, zero = { 0 };
	int refused;

	if (disk < 0) {
		perror("ask-disk");
		return 1;
	}
	if (argc > 2) {
		puts("open");
		fflush(stdout);
		getchar();
	}
	if (ioctl(disk, HDIO_GETGEO, &geometry))
		perror("geometry");
	printf("geometry %u %u %u\n", geometry.heads, geometry.sectors, geometry.cylinders);
	printf("cdrom %s\n", ioctl(disk, CDROM_GET_CAPABILITY, 0) ? "no" : "yes");
	memset(&session, 0xff, sizeof(session));
	refused = ioctl(disk, CDROMMULTISESSION, &session);
	printf("multisession %s\n", refused				    ? "refused"
				    : memcmp(&session, &zero, sizeof(zero)) ? "other"
									    : "zero");
	printf("nowhere %d\n", ioctl(disk, CDROMMULTISESSION, 8) ? errno : 0);
	printf("other %d\n", ioctl(disk, UNKNOWN, 0) ? errno : 0);
	return 0;
}
