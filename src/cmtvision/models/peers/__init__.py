"""The systems that CMT is compared with: CeiT, CvT and PVT, ViT and DeiT at the size of cmt_nano."""
