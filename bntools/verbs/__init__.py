"""One capability a file. A verb imports core, never another verb."""
