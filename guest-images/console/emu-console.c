// SPDX-License-Identifier: GPL-2.0
/*
 * The second console of a domU, as a character device: /dev/emu-console.
 *
 * hvc_xen.c of Linux 5.10.218 to .262 binds the event channel that it has allocated as if it were
 * the back end's (bind_interdomain_evtchn_to_irq_lateeoi() where 6.1.170 has
 * bind_evtchn_to_irq_lateeoi()), so that no console but the first connects: "probe of console-1
 * failed with error -22". This driver takes the device up that hvc_xen could not.
 */
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/interface/io/console.h>
#include <xen/xen.h>
#include <xen/xenbus.h>

#define PART 512u /* bytes that are copied at a time, on the stack */

static struct {
	struct xenbus_device *dev;
	struct xencons_interface *intf;
	grant_ref_t ref;
	evtchn_port_t evtchn;
	int irq;
	wait_queue_head_t wait;
} console;

static irqreturn_t interrupt(int irq, void *unused)
{
	wake_up_interruptible(&console.wait);
	return IRQ_HANDLED;
}

static XENCONS_RING_IDX to_read(void)
{
	return READ_ONCE(console.intf->in_prod) - console.intf->in_cons;
}

static XENCONS_RING_IDX to_write(void)
{
	return sizeof(console.intf->out) -
	       (console.intf->out_prod - READ_ONCE(console.intf->out_cons));
}

static ssize_t console_read(struct file *file, char __user *to, size_t count, loff_t *where)
{
	struct xencons_interface *intf = console.intf;
	char part[PART];
	XENCONS_RING_IDX at;
	size_t i;

	while (!to_read()) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(console.wait, to_read()))
			return -ERESTARTSYS;
	}
	virt_rmb(); /* what is read was written before in_prod */
	at = intf->in_cons;
	count = min_t(size_t, count, min_t(size_t, to_read(), PART));
	for (i = 0; i < count; i++)
		part[i] = intf->in[MASK_XENCONS_IDX(at + i, intf->in)];
	if (copy_to_user(to, part, count))
		return -EFAULT;
	virt_mb(); /* read before the back end may write over it */
	intf->in_cons = at + count;
	notify_remote_via_evtchn(console.evtchn);
	return count;
}

static ssize_t console_write(struct file *file, const char __user *from, size_t count,
			     loff_t *where)
{
	struct xencons_interface *intf = console.intf;
	char part[PART];
	XENCONS_RING_IDX at;
	size_t i;

	while (!to_write()) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(console.wait, to_write()))
			return -ERESTARTSYS;
	}
	virt_mb(); /* the back end has read what this overwrites */
	at = intf->out_prod;
	count = min_t(size_t, count, min_t(size_t, to_write(), PART));
	if (copy_from_user(part, from, count))
		return -EFAULT;
	for (i = 0; i < count; i++)
		intf->out[MASK_XENCONS_IDX(at + i, intf->out)] = part[i];
	virt_wmb(); /* the bytes before out_prod */
	intf->out_prod = at + count;
	notify_remote_via_evtchn(console.evtchn);
	return count;
}

static __poll_t console_poll(struct file *file, poll_table *table)
{
	__poll_t ready = 0;

	poll_wait(file, &console.wait, table);
	if (to_read())
		ready |= EPOLLIN | EPOLLRDNORM;
	if (to_write())
		ready |= EPOLLOUT | EPOLLWRNORM;
	return ready;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read = console_read,
	.write = console_write,
	.poll = console_poll,
	.llseek = no_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "emu-console",
	.fops = &operations,
};

static int connect(struct xenbus_device *dev)
{
	int err;

	memset(console.intf, 0, sizeof(*console.intf));
	err = xenbus_grant_ring(dev, console.intf, 1, &console.ref);
	if (err < 0)
		return err;
	err = xenbus_alloc_evtchn(dev, &console.evtchn);
	if (err)
		return err;
	err = bind_evtchn_to_irqhandler(console.evtchn, interrupt, 0, "emu-console", NULL);
	if (err < 0)
		return err;
	console.irq = err;
	err = xenbus_printf(XBT_NIL, dev->nodename, "ring-ref", "%u", console.ref);
	if (!err)
		err = xenbus_printf(XBT_NIL, dev->nodename, "port", "%u", console.evtchn);
	return err ?: xenbus_switch_state(dev, XenbusStateInitialised);
}

static int console_probe(struct xenbus_device *dev, const struct xenbus_device_id *id)
{
	int err;

	if (console.dev || !strcmp(dev->nodename, "device/console/0"))
		return -ENODEV;
	console.intf = (void *)get_zeroed_page(GFP_KERNEL);
	if (!console.intf)
		return -ENOMEM;
	console.dev = dev;
	err = connect(dev);
	return err ?: misc_register(&device);
}

/* Restored, or moved to another host: grant and event channel are gone with the old domain. */
static int console_resume(struct xenbus_device *dev)
{
	unbind_from_irqhandler(console.irq, NULL);
	gnttab_end_foreign_access(console.ref, 0, 0); /* the page stays */
	return connect(dev);
}

static void backend_changed(struct xenbus_device *dev, enum xenbus_state state)
{
	if (state == XenbusStateConnected)
		xenbus_switch_state(dev, XenbusStateConnected);
	else if (state == XenbusStateClosing)
		xenbus_frontend_closed(dev);
}

static const struct xenbus_device_id ids[] = { { "console" }, { "" } };

static struct xenbus_driver driver = {
	.name = "emu-console",
	.ids = ids,
	.probe = console_probe,
	.resume = console_resume,
	.otherend_changed = backend_changed,
};

static int __init console_init(void)
{
	if (!xen_domain() || xen_initial_domain())
		return -ENODEV;
	init_waitqueue_head(&console.wait);
	return xenbus_register_frontend(&driver);
}
module_init(console_init);

MODULE_DESCRIPTION("The second console of a domU, where hvc_xen can't connect it");
MODULE_LICENSE("GPL");
