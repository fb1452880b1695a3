"""Files of weights: Hugging Face, PEFT and safetensors, in and out."""
