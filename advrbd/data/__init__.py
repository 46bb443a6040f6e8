"""From a folder of files to arrays: the index, the pixels, the augmentation."""
