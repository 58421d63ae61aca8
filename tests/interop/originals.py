"""The quantizers of public tokenizers, rebuilt the way they compute: every distance in one array.

Written from their interfaces and formulas; the golden data of the reference programs says that they
are right (test_families.py). Each family is a holder, so that its class has the name it has there.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def all_distances(rows, codes):
    return rows.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * rows @ codes.T


class Taming:
    class VectorQuantizer2(nn.Module):
        def __init__(self, n_e, e_dim, beta, remap=None, sane_index_shape=False, legacy=True):
            super().__init__()
            self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
            self.embedding = nn.Embedding(n_e, e_dim)
            self.embedding.weight.data.uniform_(-1 / n_e, 1 / n_e)
            self.remap, self.re_embed, self.sane_index_shape = remap, n_e, sane_index_shape

        def index_of(self, rows):
            return all_distances(rows, self.embedding.weight).argmin(1)

        def forward(self, z):
            last = z.movedim(1, -1).contiguous()
            index = self.index_of(last.flatten(0, 2))
            codes = self.embedding(index).view_as(last)
            towards = (codes.detach() - last).square().mean()
            back = (codes - last.detach()).square().mean()
            weights = (1, self.beta) if self.legacy else (self.beta, 1)
            codes = last + (codes - last).detach()
            if self.sane_index_shape:
                index = index.view(last.shape[:3])
            loss = weights[0] * towards + weights[1] * back
            return codes.movedim(-1, 1).contiguous(), loss, (None, None, index)

        def get_codebook_entry(self, indices, shape):
            codes = self.embedding(indices)
            return codes if shape is None else codes.view(shape).movedim(-1, 1).contiguous()


class Diffusers:
    class VectorQuantizer(Taming.VectorQuantizer2):
        def __init__(self, n_e, vq_embed_dim, beta, **options):
            super().__init__(n_e, vq_embed_dim, beta, **options)
            del self.e_dim
            self.vq_embed_dim = vq_embed_dim

        def index_of(self, rows):
            return torch.cdist(rows, self.embedding.weight).argmin(1)


class LlamaGen:
    class VectorQuantizer(nn.Module):
        def __init__(self, n_e, e_dim, beta, entropy_loss_ratio, l2_norm, show_usage):
            super().__init__()
            self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
            self.entropy_loss_ratio, self.l2_norm = entropy_loss_ratio, l2_norm
            self.show_usage = show_usage
            self.embedding = nn.Embedding(n_e, e_dim)
            self.embedding.weight.data.uniform_(-1 / n_e, 1 / n_e)
            if show_usage:
                self.register_buffer("codebook_used", torch.zeros(65536))

        def forward(self, z):
            last, table = z.movedim(1, -1).contiguous(), self.embedding.weight
            if self.l2_norm:
                last, table = F.normalize(last, dim=-1), F.normalize(table, dim=-1)
            index = all_distances(last.flatten(0, 2), table).argmin(1)
            codes = table[index].view_as(last)
            losses = (None, None, None, 0)
            if self.training:
                usage = 0
                if self.show_usage:
                    recent = torch.cat([self.codebook_used[len(index) :], index.float()])
                    self.codebook_used.copy_(recent)
                    usage = len(recent.unique()) / self.n_e
                vq = (codes - last.detach()).square().mean()
                commit = self.beta * (codes.detach() - last).square().mean()
                losses = vq, commit, 0 * vq.detach(), usage
            codes = last + (codes - last).detach()
            return codes.movedim(-1, 1), losses, (None, None, index)

        def get_codebook_entry(self, indices, shape=None, channel_first=True):
            table = self.embedding.weight
            codes = (F.normalize(table, dim=-1) if self.l2_norm else table)[indices]
            if shape is None or not channel_first:
                return codes if shape is None else codes.view(shape)
            b, c, h, w = shape
            return codes.reshape(b, h, w, c).movedim(-1, 1).contiguous()


class Phi(nn.Conv2d):
    def __init__(self, dim):
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, h):
        return h * 0.5 + super().forward(h) * 0.5


class SomePhi(nn.Module):
    def __init__(self, number, dim):
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(dim) for _ in range(number))
        margin = 1 / 3 / number if number == 4 else 1 / 2 / number
        self.ticks = np.linspace(margin, 1 - margin, number)

    def __getitem__(self, at):
        return self.qresi_ls[int(np.argmin(np.abs(self.ticks - at)))]


class VAR:
    class VectorQuantizer2(nn.Module):
        def __init__(self, vocab_size, Cvae, using_znorm, beta=0.25, v_patch_nums=None):
            super().__init__()
            self.vocab_size, self.Cvae, self.using_znorm = vocab_size, Cvae, using_znorm
            self.v_patch_nums, self.beta = v_patch_nums, beta
            self.quant_resi_ratio, self.record_hit, self.prog_si = 0.5, 0, -1
            self.quant_resi = SomePhi(4, Cvae)
            self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(v_patch_nums), vocab_size))
            self.embedding = nn.Embedding(vocab_size, Cvae)

        def steps(self, f):
            rest, last = f.detach().clone(), len(self.v_patch_nums) - 1
            for scale, side in enumerate(self.v_patch_nums):
                low = F.interpolate(rest, size=(side, side), mode="area") if scale < last else rest
                rows, table = low.movedim(1, -1).flatten(0, 2), self.embedding.weight.detach()
                if self.using_znorm:
                    index = (F.normalize(rows, dim=-1) @ F.normalize(table, dim=-1).T).argmax(1)
                else:
                    index = all_distances(rows, table).argmin(1)
                index = index.view(len(f), side, side)
                h = self.embedding(index).movedim(-1, 1)
                if scale < last:
                    h = F.interpolate(h, size=f.shape[2:], mode="bicubic")
                h = self.quant_resi[scale / last](h)
                rest = rest - h.detach()
                yield index.flatten(1), h

        def forward(self, f_BChw, ret_usages=False):
            f = f_BChw.float()
            f_hat, loss = torch.zeros_like(f), 0.0
            for _, h in self.steps(f):
                f_hat = f_hat + h
                loss = loss + self.beta * F.mse_loss(f_hat.detach(), f)
                loss = loss + F.mse_loss(f_hat, f.detach())
            f_hat_through = (f_hat.detach() - f.detach()) + f
            return f_hat_through, None, loss / len(self.v_patch_nums)

        def f_to_idxBl_or_fhat(self, f_BChw, to_fhat, v_patch_nums=None):
            f_hat, found = 0.0, []
            for index, h in self.steps(f_BChw):
                f_hat = f_hat + h
                found.append(f_hat if to_fhat else index)
            return found


class Tokenizer(nn.Module):
    """What those quantizers sit in: something before, something after."""

    def __init__(self, quantize, dim):
        super().__init__()
        self.encoder = nn.Conv2d(3, dim, 1)
        self.quantize = quantize
        self.decoder = nn.Conv2d(dim, 3, 1)

    def forward(self, images):
        quantized, *rest = self.quantize(self.encoder(images))
        return self.decoder(quantized), rest
