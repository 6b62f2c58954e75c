/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A LUN's configuration: `ledger//path/to/file`, or with `?name=number&name=number` behind it. */
#ifndef EMU_LUN_CONFIG_H
#define EMU_LUN_CONFIG_H

/* To be freed; NULL without a path. */
char *config_path(const char *config);
/* The number that has this name, or 0. */
unsigned long config_number(const char *config, const char *name);

#endif
