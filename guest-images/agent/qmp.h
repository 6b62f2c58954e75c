/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The QMP that libxl needs of a device model: a greeting, and empty replies. */
#ifndef EMU_QMP_H
#define EMU_QMP_H

/* Listen at the socket that QEMU's arguments name. Returns it, or -1. */
int qmp_listen(int argc, char **argv);
/* Accept a client in place of the old one. Returns its socket, or -1. */
int qmp_accept(void);
/* Reply to the client. Returns its socket, or -1 once it is gone. */
int qmp_answer(void);
void qmp_close(void);
/*
 * Before it starts a device model, libxl of 4.20 starts it once to be asked for its options, with a
 * socket that it has opened. Reply until it is content. Returns -1 where the arguments ask for none.
 */
int qmp_probe(int argc, char **argv);

#endif
