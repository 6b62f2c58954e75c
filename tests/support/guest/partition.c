/*
 * partition DISK add|resize|remove SECTORS
 *
 * Partition 1 of a disk, as the kernel keeps it in memory: nothing is written
 * to the disk. Its size can change while it is in use.
 */
#include <fcntl.h>
#include <linux/blkpg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define SECTOR 512
#define START (2048LL * SECTOR)

static int operation(const char *name)
{
	if (!strcmp(name, "add"))
		return BLKPG_ADD_PARTITION;
	if (!strcmp(name, "resize"))
		return BLKPG_RESIZE_PARTITION;
	if (!strcmp(name, "remove"))
		return BLKPG_DEL_PARTITION;
	return 0;
}

int main(int argc, char **argv)
{
	struct blkpg_partition partition = { .pno = 1, .start = START };
	struct blkpg_ioctl_arg request = { .datalen = sizeof(partition), .data = &partition };
	int disk;

	if (argc != 4 || !operation(argv[2])) {
		fprintf(stderr, "usage: partition DISK add|resize|remove SECTORS\n");
		return 2;
	}
	request.op = operation(argv[2]);
	partition.length = atoll(argv[3]) * SECTOR;
	disk = open(argv[1], O_RDWR);
	if (disk < 0 || ioctl(disk, BLKPG, &request)) {
		perror(argv[1]);
		return 1;
	}
	return 0;
}
