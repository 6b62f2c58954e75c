/* The guest of tiny_guest.py. */
typedef unsigned int u32;
__attribute__((section(".head"), used, aligned(4))) static const u32 header[] = { 0x1BADB002, 0,
										  -0x1BADB002 };
static char stack[8192] __attribute__((used));
static volatile u32 count;
static void out(unsigned short p, unsigned char v)
{
	asm volatile("outb %0,%1" ::"a"(v), "Nd"(p));
}
static unsigned char in(unsigned short p)
{
	unsigned char v;
	asm volatile("inb %1,%0" : "=a"(v) : "Nd"(p));
	return v;
}
static void put(unsigned short com, char c)
{
	while (!(in((unsigned short)(com + 5)) & 0x20))
		;
	out(com, (unsigned char)c);
}

static void text(unsigned short com, const char *s, int n)
{
	while (n-- && *s)
		put(com, *s++);
}
static void number(unsigned short com, u32 n)
{
	if (n >= 10)
		number(com, n / 10);
	put(com, (char)('0' + n % 10));
}

__attribute__((used)) void run(u32 *info)
{
	text(0x3f8, "cmdline: ", -1);
	text(0x3f8, (char *)info[4], -1);
	text(0x3f8, "\r\n", -1);
	u32 *module = (u32 *)info[6];
	for (u32 i = 0; i < info[5]; i++, module += 4) {
		text(0x3f8, "module: ", -1);
		text(0x3f8, (char *)module[2], -1);
		text(0x3f8, " holds ", -1);
		text(0x3f8, (char *)module[0], 8);
		text(0x3f8, "\r\n", -1);
	}
	text(0x3f8, "ready\r\n", -1);
	for (;;) {
		while (!(in(0x2f8 + 5) & 1))
			asm volatile("pause");
		unsigned char key = in(0x2f8);
		if (key == 'R')
			out(0x64, 0xfe);
		if (key == 'H')
			out(0x43, 0x30); // the PIT does not tick any more
		if (key == 'H' || key == 'I')
			asm volatile("cli; hlt");
		if (key == 'F')
			for (;;)
				text(0x2f8, "this guest prints without end\r\n", -1);
		if (key == 'X')
			text(0x3f8, "(XEN) Panic on CPU 0:\r\n(XEN) as asked\r\n", -1);
		count++;
		text(0x2f8, "count ", -1);
		number(0x2f8, count);
		text(0x2f8, "\r\n", -1);
	}
}
asm(".globl _start\n_start: cli\n mov $stack+8192,%esp\n push %ebx\n call run\n");
