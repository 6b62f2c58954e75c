/* SPDX-License-Identifier: GPL-2.0-or-later */
/* As much QMP as libxl wants of a device model: a greeting, and an empty answer to everything. */
#ifndef EMU_QMP_H
#define EMU_QMP_H

/* Find the socket's place among QEMU's arguments and listen there; the socket, or -1. */
int qmp_listen(int argc, char **argv);
/* Take a new client; the one before is dropped. Returns its socket, or -1. */
int qmp_accept(void);
/* Answer what the client asks. Returns its socket, or -1 once it is gone. */
int qmp_answer(void);
void qmp_close(void);

#endif
