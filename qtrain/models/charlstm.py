"""An LSTM (Hochreiter and Schmidhuber 1997) over characters."""

from __future__ import annotations

from torch import Tensor, nn

from .. import checks


class CharLSTM(nn.Module):
    """Embedding, nn.LSTM of `depth` layers and a linear head; the state starts at zero.

    (N, T) int64 -> logits (N, T, num_classes) of each next character, for any T.
    dropout   of the embedding, between the layers and before the head
    ValueError or TypeError for sizes out of range and, in the forward, for other tokens.
    """

    def __init__(
        self, *, num_classes: int, width: int = 128, depth: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for what, size in {"num_classes": num_classes, "width": width, "depth": depth}.items():
            checks.integer(what, size, low=1)
        checks.number("dropout", dropout, low=0, high=1, hint="0 is none")
        self.embedding = nn.Embedding(num_classes, width)
        self.drop1 = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0
        self.lstm = nn.LSTM(width, width, depth, batch_first=True, dropout=between)
        self.drop2 = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        checks.tokens(tokens)
        y, _ = self.lstm(self.drop1(self.embedding(tokens)))
        logits: Tensor = self.fc(self.drop2(y))
        return logits
