/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "config.h"

#include <stdlib.h>
#include <string.h>

char *config_path(const char *config)
{
	const char *slash = strchr(config, '/');

	return slash && slash[1] ? strndup(slash + 1, strcspn(slash + 1, "?")) : NULL;
}

unsigned long config_number(const char *config, const char *name)
{
	const char *at = strchr(config, '?');
	size_t length = strlen(name);

	for (; at; at = strchr(at, '&')) {
		at++;
		if (!strncmp(at, name, length) && at[length] == '=')
			return strtoul(at + length + 1, NULL, 10);
	}
	return 0;
}
