"""emoji-flux: a small text-to-image flow transformer in the form of FLUX.1, trained on emoji.

The stages are programs of their own: ``data`` renders pictures and writes captions, ``vae`` trains
the autoencoder, ``flow`` the transformer with its two text encoders, ``clip`` a contrastive model
of the same domain, ``proof`` checks the result and ``card`` writes the model cards.
"""
