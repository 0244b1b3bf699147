"""The miniature world's base model: trained from nothing by ``train.py``, stored small by ``storage.py``."""
