"""Operations on tensors that know nothing of diffusion: rows, trees, norms, histories, counted work."""
