"""Training of emoji-flux: a small text-to-image flow transformer in the form of FLUX.1-dev.

``python -m training.run`` trains the autoencoder, then the transformer with its text encoders, then
distils guidance into it, and writes a FluxPipeline folder. ``data`` paints the pictures, ``text``
makes captions and tokens, ``steps`` holds what every training shares, ``vae``, ``flow`` and
``distil`` are the three stages, ``proof`` judges pictures, ``clip`` trains a contrastive model of
the same domain, ``card`` writes the model cards, and ``bundle`` packs everything for a
machine with a GPU.
"""
