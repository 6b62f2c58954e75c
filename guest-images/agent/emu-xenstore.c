/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * emu-xenstore — dom0's frequent uses of xenstore, in one small program.
 *
 *	emu-xenstore read PATH	print the value alone; status 1 if there is none
 *	emu-xenstore ls PATH	print all below it, as `xenstore-ls -f` does
 *	block-emu add		(as libxl's hotplug script) write the device to serve to the back end
 *				at $XENBUS_PATH
 *
 * Debian's tools load five libraries each, which takes most of their time under emulation. Xen's
 * own script for disks adds checks for sharing, loop devices and a lock, not needed here.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "die.h"
#include "xenstore.h"

#define PATH_LIMIT 3072 /* XENSTORE_ABS_PATH_MAX */

int die(const char *what)
{
	fprintf(stderr, "emu-xenstore: %s: %s\n", what, strerror(errno));
	return 1;
}

static void print_value(const char *value, size_t length)
{
	for (; length; length--, value++)
		if (isprint((unsigned char)*value) && *value != '\\' && *value != '"')
			putchar(*value);
		else
			printf("\\x%02x", (unsigned char)*value);
}

/* Nodes removed meanwhile are left out. */
static bool list(const char *path)
{
	char child[PATH_LIMIT];
	size_t length, size;
	char *names = xs_children(path, &length);
	const char *value;

	if (!names)
		return errno == ENOENT;
	for (char *name = names; name < names + length; name += strlen(name) + 1) {
		snprintf(child, sizeof child, "%s/%s", strcmp(path, "/") ? path : "", name);
		value = xs_value(child, &size);
		if (value) {
			printf("%s = \"", child);
			print_value(value, size);
			puts("\"");
		}
		if (!list(child))
			return false;
	}
	free(names);
	return true;
}

static bool write_key(const char *root, const char *key, const char *value)
{
	char path[PATH_LIMIT];

	snprintf(path, sizeof path, "%s/%s", root, key);
	return xs_write(path, value);
}

static int add_disk(const char *root)
{
	char path[PATH_LIMIT], device[XS_VALUE_MAX], text[XS_VALUE_MAX + 32];
	struct stat about;

	snprintf(path, sizeof path, "%s/params", root);
	if (!xs_read(path, device))
		return die(path);
	if (stat(device, &about) || !S_ISBLK(about.st_mode)) {
		snprintf(text, sizeof text, "%s is not a block device", device);
		write_key(root, "hotplug-error", text);
		write_key(root, "hotplug-status", "error");
		return 1;
	}
	snprintf(text, sizeof text, "%x:%x", major(about.st_rdev), minor(about.st_rdev));
	if (!write_key(root, "physical-device", text) ||
	    !write_key(root, "physical-device-path", device) ||
	    !write_key(root, "hotplug-status", "connected"))
		return die(root);
	return 0;
}

int main(int argc, char **argv)
{
	const char *root = getenv("XENBUS_PATH"), *value;
	size_t length;

	if (argc == 2 && root && strcmp(argv[1], "add"))
		return 0; /* nothing to do when a disk is removed */
	if (argc != 3 && !(argc == 2 && root)) {
		fprintf(stderr, "usage: emu-xenstore read|ls PATH\n");
		return 2;
	}
	if (xs_open() < 0)
		return die("connecting to xenstored");
	if (argc == 2)
		return add_disk(root);
	if (!strcmp(argv[1], "ls"))
		return list(argv[2]) ? 0 : die(argv[2]);
	value = xs_value(argv[2], &length);
	if (!value)
		return 1;
	fwrite(value, 1, length, stdout);
	return 0;
}
