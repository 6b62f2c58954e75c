/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The frames between the controller and emu-agent. The controller's end is emu/channel/frames.py.
 *
 * A frame is a header and `length` bytes. Numbers are little endian (x86 only). The two
 * directions have their own magic, so that a tty which echoes can't feed an end its own
 * frames. Each direction numbers its frames from 1 after a hello; hello, its answer and
 * the zero bytes allowed between frames are outside that count.
 */
#ifndef EMU_WIRE_H
#define EMU_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION 1
#define MAGIC_TO_GUEST 0x91486d45u /* "EmH\x91" */
#define MAGIC_TO_HOST 0x92476d45u  /* "EmG\x92" */
#define MAGIC_TRAILER 0x93546d45u  /* "EmT\x93", ends the data of a file */
#define PAYLOAD_MAX 32768u	   /* the most virtio_console takes in one write */
#define NONCE_SIZE 16

enum to_guest {
	HELLO = 1, /* struct hello */
	BYE = 2,   /* end every command of this connection */
	PING = 3,  /* any bytes, sent back */
	EXEC = 4,  /* struct exec_request, then its strings */
	STDIN = 5,
	STDIN_END = 6,
	CREDIT = 7, /* uint32_t: so many more bytes of `stream` may be sent */
	SIGNAL = 8, /* int32_t signal, uint32_t scope */
	RESIZE = 9, /* uint16_t rows, columns */
};

enum to_host {
	WELCOME = 65, /* struct welcome */
	TROUBLE = 66, /* text: why this connection is over */
	PONG = 67,
	OUTPUT = 68,	   /* of `stream` 1 or 2 */
	STDIN_CREDIT = 69, /* uint32_t: so many more bytes of standard input may be sent */
	EXITED = 70,	   /* struct exited; the last frame of its command */
};

enum exec_flags {
	EXEC_PTY = 1,	   /* a terminal instead of three pipes; all output is stream 1 */
	EXEC_GENTLE = 2,   /* ends on SIGTERM and has something to tidy up */
	EXEC_NO_STDIN = 4, /* standard input is /dev/null */
	EXEC_SELF = 8,	   /* run this program: the file and bridge commands */
};

enum signal_scope { SCOPE_GROUP = 0, SCOPE_TREE = 1 };

enum exit_kind { EXIT_STATUS = 0, EXIT_SIGNAL = 1, EXIT_NOT_STARTED = 2 };

struct frame {
	uint32_t magic;
	uint8_t type;
	uint8_t stream;
	uint16_t zero;
	uint32_t id; /* the command, chosen by the controller, never used twice */
	uint32_t seq;
	uint32_t length;
	uint32_t crc; /* CRC-32 of the fields above and the payload */
};

struct hello {
	uint8_t nonce[NONCE_SIZE];
	uint32_t version;
	uint32_t chunk;	 /* the longest payload the controller accepts */
	uint32_t window; /* credit each output stream starts with */
	uint32_t zero;
};

struct welcome {
	uint8_t nonce[NONCE_SIZE];
	uint32_t version;
	uint32_t chunk;	 /* the longest payload that suits this link */
	uint32_t window; /* credit each standard input starts with */
	uint32_t pid;
};

struct exec_request {
	uint16_t flags;
	uint16_t rows, columns;
	uint16_t argc, envc; /* strings that follow, each ended by NUL: cwd, argv, environment */
};

struct exited {
	uint32_t kind;
	int32_t value; /* exit status, signal, or errno */
};

/* Follows the bytes of a file, in either direction. */
struct trailer {
	uint64_t length;
	uint32_t crc;
	uint32_t magic;
};

_Static_assert(sizeof(struct frame) == 24, "frame header");
_Static_assert(sizeof(struct hello) == 32 && sizeof(struct welcome) == 32, "hello");
_Static_assert(sizeof(struct exec_request) == 10, "exec");
_Static_assert(sizeof(struct trailer) == 16, "trailer");

#endif
