"""`--backbone`: maps of any module at the stride of the positions; frozen ones are cached, and not
saved.
"""

import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import tiny_backbones
import torch
from conftest import write_folder
from PIL import Image

import infoseg_fast as isf
from infoseg_fast import report, tile_labels
from infoseg_fast.backbone_modules import MEAN, STD, normalization
from infoseg_fast.backbones import Backbone, build, cache_features
from infoseg_fast.cli import main
from infoseg_fast.config import Settings
from infoseg_fast.errors import DataError
from infoseg_fast.export import export
from infoseg_fast.feature_cache import FeatureCache, cache_root
from infoseg_fast.recipe import DataInfo
from infoseg_fast.recipe.features import FREEDOM, MixtureHead, whole_cells
from infoseg_fast.recipe.labelling import Labelling
from infoseg_fast.run_folder import RunFolder
from infoseg_fast.train import train

PYRAMID = "tiny_backbones:pyramid"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(report, "write", lambda *_: None)  # takes longer than the training


def network(backbone=PYRAMID, weights=None, frozen=True, local_index=(2,), global_index=-1, in_channels=3):
    return build(
        backbone=backbone, weights=weights, frozen=frozen, local_index=local_index, global_index=global_index,
        in_channels=in_channels, num_classes=3, dim=5,
    )  # fmt: skip


def how(data, **given):
    sizes = {"data": str(data), "recipe": "paper", "backbone": PYRAMID, "local_index": (2,), "dim": 8}
    runs = {"steps": 6, "crop": 32, "batch_size": 4, "checkpoint_every": 3, "log_every": 2}
    return sizes | runs | given


# The maps


@pytest.mark.parametrize(("local_index", "channels"), [((0,), 4), ((1,), 6), ((2,), 8), ((-1, 0, 1), 20)])
@pytest.mark.parametrize("size", [(64, 64), (50, 33), (36, 100)])
def test_features_have_stride_4_for_maps_of_any_stride(local_index, channels, size):
    model = network(local_index=local_index).eval()
    features, global_features = model(torch.rand(2, 3, *size))
    h, w = (max(32, -(-n // 4) * 4) // 4 for n in size)
    assert features.shape == (2, channels, h, w) and global_features.shape == (2, 3, 5)


def test_images_are_padded_for_the_maps_that_are_not_used_too():
    model = network("tiny_backbones:joined", local_index=(0,), global_index=0).eval()
    assert model(torch.rand(1, 3, 36, 52))[0].shape[2:] == (9, 13)


def test_maps_are_upsampled_at_their_place():
    """A map of stride 16 over an image of 36 px covers 48: its third cell begins at position 8."""
    net = tiny_backbones.Pyramid().eval()
    x = torch.rand(1, 3, 36, 48)
    local, _ = Backbone(net, (3,), 3, 3, True, "it")(x)
    whole = net(torch.nn.functional.pad(x, (0, 0, 0, 12), mode="replicate"))[3]
    upsampled = torch.nn.functional.interpolate(whole, scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(local, upsampled[:, :, :9, :12])


def test_the_normalisation_is_the_backbones_own():
    model = network()
    assert model.mean.tolist() == pytest.approx([0.4, 0.5, 0.6]) and model.std.tolist() == pytest.approx(
        [0.2, 0.2, 0.3]
    )
    assert normalization(torch.nn.Identity(), 3) == (list(MEAN), list(STD))
    assert normalization(torch.nn.Identity(), 4) == (None, None), "then that of the images is used"
    timm_like = torch.nn.Identity()
    timm_like.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    assert normalization(timm_like, 3) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "tiny_backbones:missing"}, "--backbone tiny_backbones:missing cannot be imported"),
        ({"backbone": "tiny_backbones:nothing"}, "must return a torch.nn.Module, not NoneType"),
        ({"backbone": "tiny_backbones:one_map"}, r"map 0 of an image of 224 x 224 px is \[12544\]"),
        ({"backbone": "tiny_backbones:four_channels"}, "cannot take images of 3 channels"),
        ({"backbone": "tiny_backbones:one_size"}, r"has stride 32, and of one of 64 x 96 px it is \[1, 3, 7, 7\]"),
        ({"backbone": "tiny_backbones:failing"}, "failing cannot be made: FileNotFoundError: no weights here"),
        ({"backbone": "tiny_backbones:half"}, "must return float32 maps; map 0 is torch.float16"),
        ({"local_index": (4,)}, "--local-index must be from 0 to 3, or from -4 to -1, not 4"),
        ({"global_index": -5}, "--global-index must be from 0 to 3"),
        ({"weights": "no_such_file"}, "--backbone-weights no_such_file is no file"),
    ],
)
def test_a_bad_backbone_is_named(given, message):
    with pytest.raises(DataError, match=message):
        network(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": None, "freeze_backbone": True}, "--freeze-backbone needs --backbone"),
        ({"backbone": None, "local_index": (0,)}, "--local-index needs --backbone"),
        ({"backbone": "resnet18"}, "--backbone must be timm:NAME or MODULE:FUNCTION, not 'resnet18'"),
        ({"backbone": PYRAMID, "width": 8}, "--width belongs to the package's own network"),
    ],
)
def test_settings_that_do_not_fit_are_named(given, message):
    with pytest.raises(DataError, match=message):
        Settings.create({"data": "any"} | given)


# Weights


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_come_from_a_file(ending, tmp_path):
    other, file = tiny_backbones.other_weights(), str(tmp_path / f"weights.{ending}")
    if ending == "pt":
        torch.save(other.state_dict(), file)
    else:
        pytest.importorskip("safetensors.torch").save_file(other.state_dict(), file)
    x = torch.rand(1, 3, 32, 32)
    own, loaded = network().eval(), network(weights=file).eval()
    expected = Backbone(other, (2,), 3, 3, True, "it")(own.normalize(x))[0]
    assert torch.equal(loaded(x)[0], expected) and not torch.equal(own(x)[0], expected)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(2)}, "does not fit tiny_backbones:pyramid.*[Mm]issing key"),
        ({"epoch": 3}, "must hold a state dict"),
        (Code(), "is no state dict"),
        (None, "is no state dict"),
    ],
)
def test_bad_weights_are_refused(content, message, tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save(content, file) if content is not None else file.write_bytes(b"PNG")
    with pytest.raises(DataError, match=f"--backbone-weights {file} {message}"):
        network(weights=str(file))
    assert "must not run" not in capsys.readouterr().out


# Frozen


def test_a_frozen_backbone_is_neither_trained_nor_saved(folder, tmp_path):
    train(out=tmp_path / "frozen", **how(folder, freeze_backbone=True, average=0.9))
    train(out=tmp_path / "trained", **how(folder))
    frozen, trained = (RunFolder(tmp_path / name).load() for name in ("frozen", "trained"))
    for content in (frozen["recipe"], frozen["labelling"]["weights"]):
        assert not any("stages" in name for name in content)
    assert any("stages" in name for name in trained["labelling"]["weights"])
    weights = tiny_backbones.pyramid().state_dict()
    loaded = isf.load(tmp_path / "frozen").labelling.network.backbone.net.state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    loaded = isf.load(tmp_path / "trained").labelling.network.backbone.net.state_dict()
    assert not torch.equal(weights["stages.0.0.weight"], loaded["stages.0.0.weight"])


def test_other_weights_than_the_runs_are_refused(folder, tmp_path, monkeypatch):
    train(out=tmp_path / "run", **how(folder, freeze_backbone=True))
    monkeypatch.setattr(tiny_backbones, "pyramid", tiny_backbones.other_weights)
    message = "frozen backbone tiny_backbones:pyramid has other weights.*sha256 [0-9a-f]{12}, not [0-9a-f]{12}"
    with pytest.raises(DataError, match=message):
        isf.load(tmp_path / "run")
    with pytest.raises(DataError, match=message):
        train(None, tmp_path / "run", resume=True, steps=8)


@pytest.mark.parametrize("given", [{"freeze_backbone": True}, {}])
def test_a_run_resumes_to_the_same_bits(given, folder, tmp_path, monkeypatch):
    train(out=tmp_path / "whole", **how(folder, **given))
    monkeypatch.setenv("INFOSEG_CACHE", str(tmp_path / "empty"))
    train(out=tmp_path / "parts", **how(folder, steps=3, **given))
    train(None, tmp_path / "parts", resume=True, steps=6)
    whole, parts = (RunFolder(tmp_path / name).load() for name in ("whole", "parts"))
    for part in ("recipe", "optimizer"):
        assert json.dumps(whole[part], default=lambda x: x.tolist()) == json.dumps(
            parts[part], default=lambda x: x.tolist()
        )


def test_features_are_computed_once(folder, tmp_path, monkeypatch):
    seen = []
    forward = tiny_backbones.Pyramid.forward
    monkeypatch.setattr(tiny_backbones.Pyramid, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    train(out=tmp_path / "first", **how(folder, freeze_backbone=True, steps=12))
    computed = len(seen)
    seen.clear()
    train(out=tmp_path / "second", **how(folder, freeze_backbone=True, steps=12, seed=1))
    # The probe and the initialisation alone: the crops of another seed are the same.
    assert len(seen) < 6 < computed


def test_the_cache_changes_no_bit(tmp_path):
    model, x = network(local_index=(0, 2)).eval(), torch.rand(3, 3, 40, 32)
    plain = [model(x[i : i + 1])[0] for i in range(3)]
    model.backbone.frozen.cache = FeatureCache("key", tmp_path)
    computed, read = model(x)[0], model(x)[0]
    assert torch.equal(computed, torch.cat(plain)) and torch.equal(read, computed)
    (file, *_) = model.backbone.frozen.cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(model(x)[0], computed), "a damaged file is computed again"


def test_modules_with_the_same_weights_have_their_own_caches():
    images = torch.rand(1, 3, 32, 32)
    for name in (PYRAMID, "tiny_backbones:swapped"):
        model = network(name).eval()
        before = model(images)
        cache_features(model.backbone)
        for _ in range(2):  # computed, then read
            assert all(torch.equal(x, y) for x, y in zip(model(images), before, strict=True))


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch):
    for name in ("INFOSEG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", home)
    with pytest.raises(DataError, match="set INFOSEG_CACHE to a folder"):
        cache_root()


def test_the_cache_is_bounded_and_may_be_missing(tmp_path, caplog):
    x, compute, shapes = torch.rand(3, 8, 8), lambda image: [image[:2]], [(2, 8, 8)]
    full = FeatureCache("key", tmp_path, limit=1000)
    for i in range(4):
        assert torch.equal(full.maps(x + i, shapes, compute)[0], x[:2] + i)
    assert sum(file.stat().st_size for file in full.folder.iterdir()) <= 1000
    (tmp_path / "file").write_text("")
    assert torch.equal(FeatureCache("key", tmp_path / "file").maps(x, shapes, compute)[0], x[:2])
    assert [record.message.split(":")[0] for record in caplog.records] == [caplog.records[0].message.split(":")[0]] * 2


# Labels


def segmenter_of(backbone, **how):
    model = network(backbone, **how).eval()
    return isf.Segmenter(Labelling(model.requires_grad_(False), {}, DataInfo(3, 3, None, [0.0] * 3, [1.0] * 3)))


@pytest.mark.parametrize("local_index", [(2,), (3, 0)])
@pytest.mark.parametrize("size", [(200, 230), (97, 400)])
def test_tiles_give_the_maps_of_the_whole_image(local_index, size, monkeypatch):
    made, images = segmenter_of(PYRAMID, local_index=local_index), torch.rand(1, 3, *size)
    labels = made.segment(images)
    monkeypatch.setattr(tile_labels, "TILE", 96)
    assert len(made.plan(size).strips) > 1 or len(made.plan(size).strips[0]) > 1
    # The mean of the global map is summed in another order, so that ties may fall to the other
    # side.
    assert (made.segment(images) != labels).float().mean() < 5e-3


def test_tiles_have_the_features_of_the_whole_image():
    backbone = network(local_index=(3, 0)).eval().backbone
    reach = -(-backbone.receptive_radius() // 16) * 16
    images = torch.rand(1, 3, 200, 232)
    whole, whole_deep = backbone(images)
    for start, stop in ((0, 96), (96, 192), (192, 200)):
        first = max(start - reach, 0)
        local, deep = backbone(images[:, :, first : stop + reach])
        rows = slice((start - first) // 4, (stop - first) // 4)
        torch.testing.assert_close(local[:, :, rows], whole[:, :, start // 4 : stop // 4], atol=1e-7, rtol=1e-6)
        rows = slice((start - first) // 16, -(-(stop - first) // 16))
        torch.testing.assert_close(
            deep[:, :, rows], whole_deep[:, :, start // 16 : -(-stop // 16)], atol=1e-7, rtol=1e-6
        )


def test_the_receptive_radius_is_measured():
    def radius(index):
        return Backbone(tiny_backbones.pyramid(), (index,), 0, 3, True, "it").receptive_radius()

    # Convolutions of 3 with stride 2 see 3, 7, 15 and 31 px; upsampling reads the next cell.
    assert [radius(i) for i in range(4)] == sorted(radius(i) for i in range(4))
    assert radius(1) <= 4 and 8 <= radius(3) <= 40


@pytest.mark.parametrize("name", ["attentive", "windows", "finite"])
def test_a_backbone_that_needs_the_whole_image_is_not_tiled(name, monkeypatch):
    made, images = segmenter_of(f"tiny_backbones:{name}", local_index=(1,), global_index=0), torch.rand(1, 3, 200, 130)
    assert made.labelling.network.backbone.receptive_radius() is None
    labels = made.segment(images)
    monkeypatch.setattr(tile_labels, "TILE", 96)
    assert len(made.plan((200, 130)).strips) == 1
    assert torch.equal(made.segment(images), labels)


@pytest.mark.parametrize("frozen", [True, False])
def test_torchscript_gives_the_labels(frozen, tmp_path):
    made, file = segmenter_of(PYRAMID, frozen=frozen, local_index=(3, 1)), tmp_path / "model.pt"
    export(made, "torchscript", file)
    for size in ((1, 3, 40, 52), (3, 3, 20, 97)):
        images = torch.rand(size)
        assert (torch.jit.load(file)(images) == made.segment(images)).float().mean() > 0.9999


def test_the_command_trains_predicts_and_scores(tmp_path, capsys):
    data, run = write_folder(tmp_path / "data", number=8, side=40), tmp_path / "run"
    options = ["--backbone", PYRAMID, "--freeze-backbone", "--local-index", "1,2", "--recipe", "paper"]
    sizes = ["--steps", "3", "--crop", "32", "--batch-size", "4", "--dim", "8"]
    assert main(["train", "--data", str(data), "--out", str(run), *options, *sizes]) == 0
    assert main(["predict", str(run), str(data / "images"), "--out", str(tmp_path / "labels")]) == 0
    assert main(["eval", str(run), "--data", str(data), "--json"]) == 0
    labels = np.asarray(Image.open(tmp_path / "labels" / "im0.png"))
    assert labels.shape == (40, 40) and labels.max() < 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_pixels"] == 8 * 40 * 40
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "no"), "--freeze-backbone"]) == 2


def test_the_baseline_clusters_the_features(tmp_path, capsys):
    pytest.importorskip("sklearn")
    data = write_folder(tmp_path / "data", number=6, side=48)
    command = ["baseline", "kmeans-backbone", "--data", str(data), "--json"]
    assert main([*command, "--backbone", PYRAMID, "--local-index", "1,2"]) == 0
    assert json.loads(capsys.readouterr().out)["pixel_accuracy"] > 0.65, "two textures"
    assert main(command) == 2 and "kmeans-backbone needs --backbone" in capsys.readouterr().err
    assert main(["baseline", "kmeans", "--data", str(data), "--backbone", PYRAMID]) == 2


# The recipe of a frozen backbone


def test_the_mixture_finds_groups_of_unequal_spread():
    y = torch.cat([torch.randn(600, 4) * 0.3 + 2, torch.randn(300, 4) - 2, torch.randn(100, 4) * 8])
    head = MixtureHead(2, 4)
    head.fit(y, seed=0)
    labels = head.joint(y).argmax(dim=1)
    assert len(labels[:600].unique()) == 1 and (labels[600:900] != labels[0]).float().mean() > 0.97
    share = head.shares.softmax(dim=0).sort().values
    assert share[1].item() == pytest.approx(0.6, abs=0.05)


def test_the_density_is_that_of_t_distributions():
    scipy = pytest.importorskip("scipy.stats")
    head, y = MixtureHead(3, 2).double(), torch.randn(50, 2, dtype=torch.float64)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    roots = head.roots.tril(-1) + torch.diag_embed(head.roots.diagonal(dim1=1, dim2=2).exp())
    shares = head.shares.softmax(dim=0)
    expected = [
        shares[k].item() * scipy.multivariate_t(m.numpy(), torch.linalg.inv(r.T @ r).numpy(), df=FREEDOM).pdf(y.numpy())
        for k, (m, r) in enumerate(zip(head.means.detach(), roots.detach(), strict=True))
    ]
    ratio = head.joint(y).exp().detach() / torch.tensor(np.stack(expected, axis=1))
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    assert torch.autograd.gradcheck(lambda y: head.joint(y).logsumexp(1), y[:4].requires_grad_())


def test_components_have_variance_1_and_are_uncorrelated():
    model = build(
        backbone=PYRAMID, weights=None, frozen=True, local_index=(1, 2), global_index=-1, in_channels=3,
        num_classes=3, dim=5, components=6,
    )  # fmt: skip
    x = model.normalize(torch.rand(8, 3, 64, 64))
    local, _ = model.backbone.native(x, project=False)
    assert local.shape == (8, 14, 16, 16)
    model.backbone.set_components(local.movedim(1, -1).flatten(0, 2))
    found = model.backbone.native(x)[0].movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(torch.cov(found.T), torch.eye(6), atol=1e-2, rtol=0)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(6), atol=1e-3, rtol=0)


def test_cells_with_padding_or_masked_pixels_do_not_count():
    images, mask = torch.rand(1, 3, 40, 32), torch.ones(1, 40, 32, dtype=torch.bool)
    local = torch.rand(1, 2, 3, 2)  # stride 16 of 48 x 32 px
    assert whole_cells(images, None, local, 16)[0].tolist() == [[True, True], [True, True], [False, False]]
    mask[0, 3, 20] = False
    assert whole_cells(images, mask, local, 16)[0].tolist() == [[True, False], [True, True], [False, False]]
    positions = mask.unfold(1, 4, 4).unfold(2, 4, 4).all(dim=(3, 4))
    assert torch.equal(whole_cells(images, positions, local, 16), whole_cells(images, mask, local, 16))


def test_the_recipe_of_a_frozen_backbone(folder, tmp_path, monkeypatch):
    given = how(folder, freeze_backbone=True, local_index=(1, 2))  # 14 channels: fewer than COMPONENTS
    del given["recipe"], given["dim"]
    train(out=tmp_path / "whole", **given)
    assert RunFolder(tmp_path / "whole").read_config()["config"]["recipe"] == "features"
    train(out=tmp_path / "parts", **given | {"steps": 3})
    train(None, tmp_path / "parts", resume=True, steps=6)
    whole, parts = (RunFolder(tmp_path / name).load()["recipe"] for name in ("whole", "parts"))
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())
    made, images = isf.load(tmp_path / "whole"), torch.rand(1, 3, 44, 50)
    probs = made.labelling.probabilities(images)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones_like(probs[:, 0]))
    export(made, "torchscript", tmp_path / "model.pt")
    assert (torch.jit.load(tmp_path / "model.pt")(images) == made.segment(images)).float().mean() > 0.999
    large = torch.rand(1, 3, 200, 130)
    labels = made.segment(large)
    monkeypatch.setattr(tile_labels, "TILE", 96)
    assert (made.segment(large) != labels).float().mean() < 1e-3


# timm


class Named(type):
    """Classes whose missing attributes are their own names."""

    def __getattr__(cls, name):
        return name


class StandIn(types.ModuleType):
    """A module that holds empty classes: timm names some when it is imported, and its networks use
    none.
    """

    __path__: tuple = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class StandIns:
    """Finds packages that timm imports and that are not installed."""

    packages = ("torchvision", "httpx2", "httpcore2")

    def find_spec(self, name, path=None, target=None):
        wanted = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self) if wanted else None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


@pytest.fixture
def timm(monkeypatch):
    """timm, with stand-ins for those of its dependencies that are not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, StandIns()])
    return importlib.import_module("timm")


def test_networks_of_timm(timm, tmp_path):
    name = "test_resnet"
    whole, file = timm.create_model(name), str(tmp_path / "weights.pt")
    torch.save(whole.state_dict(), file)
    model = network(f"timm:{name}", weights=file).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = timm.create_model(name, features_only=True, pretrained=False)
    expected.load_state_dict({k: v for k, v in whole.state_dict().items() if k in expected.state_dict()})
    local, _ = Backbone(expected, (2,), -1, 3, True, "it")(model.normalize(x))
    assert torch.equal(model(x)[0], local)
    assert model.mean.tolist() == pytest.approx(expected.pretrained_cfg["mean"])
    other = str(tmp_path / "other.pt")
    torch.save(timm.create_model("test_vit").state_dict(), other)
    with pytest.raises(DataError, match=f"--backbone-weights {other} does not fit timm:{name}"):
        network(f"timm:{name}", weights=other)
    assert network(f"timm:{name}", frozen=False, in_channels=5).eval()(torch.rand(1, 5, 32, 32))[0].isfinite().all()
    with pytest.raises(DataError, match="timm has no such model"):
        network("timm:no_such_model_at_all")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_of_timm_have_their_own_maps_at_any_size(timm, tmp_path, name):
    whole, file = timm.create_model(name, num_classes=0).eval(), str(tmp_path / "weights.pt")
    torch.save(whole.state_dict(), file)
    net = network(f"timm:{name}", weights=file, local_index=(-1,)).eval().backbone.net
    x = torch.rand(1, 3, 224, 224)
    expected = whole.forward_intermediates(x, indices=1, output_fmt="NCHW", intermediates_only=True)
    torch.testing.assert_close(net(x)[-1], expected[-1])
    narrow = net(x[..., :96])[-1]
    assert narrow.isfinite().all() and narrow.shape[2] > narrow.shape[3]


def test_transformers_of_timm_with_other_patches(timm):
    model = network("timm:vit_small_patch14_dinov2", frozen=False, local_index=(-1,)).eval()
    assert model.backbone.strides == [14] * 3
    assert model(torch.rand(1, 3, 100, 132))[0].shape[2:] == (25, 33)


def test_a_network_of_timm_with_one_size_is_refused(timm):
    with pytest.raises(
        DataError, match=r"cannot take images of 3 channels and 64 x 80 px: .*doesn't match model \(224\)"
    ):
        network("timm:beit_base_patch16_224", frozen=False)
