"""The Xen block stack as verbs and views."""
