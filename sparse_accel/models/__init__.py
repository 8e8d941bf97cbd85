"""Models, by folder or Hub id: loading, saving, the teacher, and sparsity."""
