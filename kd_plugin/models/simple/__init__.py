"""Simple students for classification and tagging: a CNN, a BiLSTM and a bag of embeddings."""

from kd_plugin.models.simple.bag_of_embeddings import BagOfEmbeddings
from kd_plugin.models.simple.bilstm import BiLSTM
from kd_plugin.models.simple.text_cnn import TextCNN

__all__ = ["BagOfEmbeddings", "BiLSTM", "TextCNN"]
