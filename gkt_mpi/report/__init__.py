"""The pages made of run folders; nothing of it is imported while a run trains."""
