/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A line of 100 characters is sent to COM1 at once, many more than its FIFO holds, and said again.
 *
 * The 16550A tells its line when its FIFO is full; QEMU reads no more from outside then. What is
 * read while a machine is recorded reaches the guest later, and has to count meanwhile. For
 * QEMU with -icount shift=0,rr=record,rrfile=… (and sleep=off, where it once came never).
 */
#include "test.h"

#define LENGTH 100

static uint8_t in8(uint16_t port)
{
	uint8_t value;

	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

int main(void)
{
	static char line[LENGTH + 1];

	/*
	 * 115200 baud and a trigger level of 14, as Xen and Linux have them. While the vCPU polls,
	 * the main loop gets a turn at each timer: here that of a FIFO which nobody reads, after
	 * the time of four characters (4 ms at 9600 baud, a tenth of a second of the host's).
	 */
	out8(0x3fb, 0x83);	/* divisor latch, 8n1 */
	out8(0x3f8, 1);
	out8(0x3f9, 0);
	out8(0x3fb, 3);
	out8(0x3fa, 0xc1);	/* FIFO enable */
	say("ready\n");
	for (int n = 0; n < LENGTH; n++) {
		while (!(in8(0x3fd) & 1))	/* data ready */
			;
		line[n] = in8(0x3f8);
	}
	say(line);
	say("\n");
	end(1);
}
