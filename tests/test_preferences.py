"""The room of the chapter on preference optimisation: exact optima, losses, pairs, words, ways to train."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mlbook.preferences import exact, laughs, losses, methods, pairs, words

LOG2 = math.log(2)


def some(*shape, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


REF = laughs.along(laughs.reference())
REWARD = laughs.along(laughs.token_reward())


# exact optima


@pytest.mark.parametrize("beta", (0.05, 0.5, 5.0))
def test_no_policy_beats_the_optimum_and_the_best_value_is_the_partition(beta):
    ref, reward = some(3, 40, seed=1).log_softmax(-1), some(3, 40, seed=2)
    best = exact.optimal_policy(ref, reward, beta)
    value = exact.objective(best, ref, reward, beta)
    assert torch.allclose(value, beta * exact.log_partition(ref, reward, beta))
    for seed in range(20):
        other = (best + some(3, 40, seed=seed, scale=0.1)).log_softmax(-1)
        gap = value - exact.objective(other, ref, reward, beta)
        assert (gap > 0).all()
        assert torch.allclose(gap, beta * exact.kl(other, best))


def test_the_implied_reward_needs_the_logarithm_of_the_partition_with_its_sign():
    best = exact.optimal_policy(REF, REWARD, 0.5)
    implied = exact.implied_reward(best, REF, 0.5)
    log_z = exact.log_partition(REF, REWARD, 0.5)
    assert torch.allclose(implied + 0.5 * log_z, REWARD)
    assert (implied - log_z.exp() - REWARD).abs().min() > 1


def test_small_and_large_beta():
    assert torch.allclose(exact.optimal_policy(REF, REWARD, 1e9), REF, atol=1e-6)
    best = exact.optimal_policy(REF, REWARD, 1e-3).exp()
    top = REWARD == REWARD.max()
    assert torch.allclose(best[top], REF.exp()[top] / REF.exp()[top].sum())


def test_a_reference_without_support_stays_without():
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    best = exact.optimal_policy(ref, torch.tensor([0.0, 1.0, 9.0]).double(), 0.1)
    assert best[2].isneginf() and torch.isfinite(exact.kl(best, ref))
    assert exact.kl(torch.full((3,), 1 / 3).double().log(), ref).isinf()


@pytest.mark.parametrize("penalty", ("kl", "forward-kl", "chi2", "l2"))
def test_other_penalties_are_stationary(penalty):
    """On the responses that keep mass, the reward minus the penalty's derivative is one number; on the others, less."""
    derivative = {
        "kl": lambda p, q: (p / q).log(),
        "forward-kl": lambda p, q: -q / p,
        "chi2": lambda p, q: p / q - 1,
        "l2": lambda p, q: p - q,
    }[penalty]
    for beta in (0.3, 3.0):
        p = exact.regularised(REF, REWARD, beta, penalty).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        at = REWARD - beta * derivative(p, REF.exp())
        kept = p > 1e-9
        assert (at[kept] - at[kept].mean()).abs().max() < 1e-6
        assert (at[~kept] <= at[kept].mean() + 1e-6).all()
    assert torch.allclose(
        exact.regularised(REF, REWARD, 0.5, "kl"),
        exact.optimal_policy(REF, REWARD, 0.5),
    )


@pytest.mark.parametrize(
    ("call", "says"),
    (
        (lambda: exact.optimal_policy(REF, REWARD, 0.0), "beta must be positive"),
        (lambda: exact.optimal_policy(REF, REWARD, math.nan), "beta must be positive"),
        (lambda: exact.optimal_policy(REF.exp(), REWARD, 1.0), "sum to one"),
        (lambda: exact.optimal_policy(REF, REWARD[:1], 1.0), "shapes differ"),
        (lambda: exact.optimal_policy(REF[:0], REWARD[:0], 1.0), "sum to one"),
        (lambda: exact.optimal_policy(REF.long(), REWARD, 1.0), "floating-point"),
        (lambda: exact.optimal_policy(REF, REWARD / 0, 1.0), "not finite"),
        (lambda: exact.kl(REF, REF[None]), "shapes differ"),
        (lambda: exact.regularised(REF, REWARD, 1.0, "tv"), "penalty is 'tv'"),
    ),
)
def test_borders_of_the_exact(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# token by token


def test_soft_values_give_the_optimum_of_whole_responses():
    for beta in (0.2, 0.5, 2.0):
        _, V, policy = exact.soft_value_iteration(
            laughs.token_reward(), laughs.reference(), laughs.transitions(), beta
        )
        best = exact.optimal_policy(REF, REWARD, beta)
        assert torch.allclose(laughs.along(policy), best)
        assert V[0].item() == pytest.approx(
            beta * exact.log_partition(REF, REWARD, beta).item()
        )


def test_soft_values_of_a_loop():
    """One state, stay with reward 1 or leave with 0: V = β log(½ e^((1 + γV)/β) + ½)."""
    args = torch.tensor([[1.0, 0.0]]).double(), torch.full((1, 2), 0.5).double().log()
    stay = torch.tensor([[[1.0], [0.0]]])
    _, V, _ = exact.soft_value_iteration(*args, stay, 0.7, discount=0.9)
    right = 0.7 * math.log(0.5 * math.exp((1 + 0.9 * V.item()) / 0.7) + 0.5)
    assert V.item() == pytest.approx(right, abs=1e-10)
    with pytest.raises(RuntimeError, match="do not settle"):
        exact.soft_value_iteration(*args, stay, 0.7)


@pytest.mark.parametrize(
    ("change", "says"),
    (
        ({"transitions": laughs.transitions()[:, :2]}, "transitions must be"),
        ({"transitions": -laughs.transitions()}, "negative"),
        ({"transitions": 2 * laughs.transitions()}, "more than one"),
        ({"discount": 0.0}, "discount"),
        ({"discount": 1.1}, "discount"),
        ({"beta": -1.0}, "beta"),
    ),
)
def test_borders_of_soft_values(change, says):
    args = {
        "reward": laughs.token_reward(),
        "ref": laughs.reference(),
        "transitions": laughs.transitions(),
        "beta": 0.5,
    }
    with pytest.raises(ValueError, match=says):
        exact.soft_value_iteration(**args | change)


# losses


def test_a_padded_tail_counts_for_nothing():
    """Completion log-probabilities −1 and −2, then three padded −5: the sequence's is −3, not −18."""
    wanted = [-1.0, -2.0, -5.0, -5.0, -5.0]
    logits = torch.zeros(1, 6, 2)
    for t, value in enumerate(wanted):
        logits[0, t, 1] = value - math.log1p(-math.exp(value))  # of token 1
    labels = torch.tensor([[0, 1, 1, 1, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 0, 0, 0]])
    assert losses.sequence_logps(logits, labels, mask).item() == pytest.approx(-3)
    ignored = labels.where(mask.bool(), -100)
    assert losses.sequence_logps(logits, ignored, mask).item() == pytest.approx(-3)


def test_unequal_lengths_in_one_batch():
    logits = some(2, 7, 11)
    labels = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0]])
    found = losses.sequence_logps(logits, labels, mask)
    for row in range(2):
        right = -F.cross_entropy(
            logits[row, :-1], labels[row, 1:].where(mask[row, 1:].bool(), -100)
        )
        assert found[row].item() == pytest.approx(right.item() * mask[row].sum().item())


@pytest.mark.parametrize(
    ("change", "says"),
    (
        ({"mask": torch.zeros(2, 4)}, "row 0 has an empty completion"),
        ({"mask": torch.tensor([[0, 1, 0, 0], [1, 1, 0, 0]])}, "completion of row 1"),
        ({"mask": torch.ones(2, 5)}, "mask"),
        ({"labels": torch.full((2, 4), -100)}, "from -100"),
        ({"labels": torch.full((2, 4), 9)}, "vocabulary has 5"),
        ({"logits": torch.zeros(8, 5)}, "logits are"),
        ({"logits": torch.zeros(2, 3, 5)}, "logits are"),
    ),
)
def test_borders_of_sequence_logps(change, says):
    args = {
        "logits": torch.zeros(2, 4, 5),
        "labels": torch.zeros(2, 4, dtype=torch.long),
        "mask": torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]]),
    }
    assert losses.sequence_logps(**args).tolist() == pytest.approx(
        [-2 * math.log(5), -math.log(5)]
    )
    with pytest.raises(ValueError, match=says):
        losses.sequence_logps(**args | change)


def test_narrow_logits_are_summed_in_float32():
    logits = some(1, 400, 3).float()
    labels = torch.zeros(1, 400, dtype=torch.long)
    mask = torch.arange(400)[None] > 0
    wide = losses.sequence_logps(logits.bfloat16().float(), labels, mask)
    narrow = losses.sequence_logps(logits.bfloat16(), labels, mask)
    assert narrow.dtype == torch.float32 and torch.allclose(narrow, wide)


@pytest.mark.parametrize("beta", (0.01, 0.1, 1.0, 30.0))
def test_policy_and_reference_alike(beta):
    """The loss is log 2 whatever β, and its gradient is not zero: −β/2 on the difference of log-probabilities."""
    chosen, rejected = some(5).requires_grad_(), some(5, seed=1).requires_grad_()
    each, *rewards = losses.dpo_loss(
        chosen, rejected, chosen.detach(), rejected.detach(), beta
    )
    assert torch.allclose(each, torch.full_like(each, LOG2))
    assert all((r == 0).all() and not r.requires_grad for r in rewards)
    each.sum().backward()
    assert torch.allclose(chosen.grad, torch.full_like(each, -beta / 2))
    assert torch.allclose(rejected.grad, torch.full_like(each, beta / 2))


@pytest.mark.parametrize("smoothing", (0.0, 0.2))
def test_gradients_against_finite_differences(smoothing):
    args = [some(4, seed=s).requires_grad_() for s in range(4)]
    assert torch.autograd.gradcheck(
        lambda *a: losses.dpo_loss(*a, 0.7, smoothing)[0], args
    )
    assert torch.autograd.gradcheck(lambda *a: losses.ipo_loss(*a, 0.7)[0], args)


def test_label_smoothing_is_a_mixture():
    args = [some(6, seed=s) for s in range(4)]
    swapped = [args[1], args[0], args[3], args[2]]
    mixed = 0.7 * losses.dpo_loss(*args, 2.0)[0] + 0.3 * losses.dpo_loss(*swapped, 2.0)[0]  # fmt: skip
    assert torch.allclose(losses.dpo_loss(*args, 2.0, 0.3)[0], mixed)


def test_huge_margins_stay_finite():
    far = torch.tensor([-1e4], dtype=torch.float64)
    zero = torch.zeros_like(far)
    assert losses.dpo_loss(far, zero, zero, zero, 1.0)[0].item() == 1e4
    assert losses.dpo_loss(zero, far, zero, zero, 1.0)[0].item() == 0


@pytest.mark.parametrize(
    ("args", "says"),
    (
        ((some(3), some(3), some(3), some(1), 1.0), "shapes differ"),
        ((some(3), some(3), some(3), some(3) / 0, 1.0), "reference's log"),
        ((some(3) * math.nan, some(3), some(3), some(3), 1.0), "policy's chosen"),
        ((some(3), some(3), some(3), some(3), 0.0), "beta"),
        ((some(3), some(3), some(3), some(3), 1.0, 0.5), "label_smoothing"),
        ((some(3), some(3), some(3), some(3), 1.0, -0.1), "label_smoothing"),
    ),
)
def test_borders_of_the_loss(args, says):
    with pytest.raises(ValueError, match=says):
        losses.dpo_loss(*args)


def test_cringe_by_hand():
    """Two tokens, so that the contrast has one partner: everything can be written down."""
    logits = some(2, 3, 2)
    labels = torch.tensor([[0, 1, 0], [0, 0, 1]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
    logps = logits[:, :-1].log_softmax(-1)
    chosen = logps[0, 0, 1] + logps[0, 1, 0]
    gate = torch.sigmoid((0.5 - (chosen - logps[1, 0, 0])) / 2)
    right = gate * (-chosen / 2 + 3 * -logps[1, 0, 1])
    found = losses.pairwise_cringe_loss(logits, labels, mask, 0.5, 2.0, 3.0, 1)
    assert found.item() == pytest.approx(right.item())
    for change, says in (
        ({"temperature": 0.0}, "temperature"),
        ({"top": 2}, "top"),
        ({"logits": logits[:1], "labels": labels[:1], "mask": mask[:1]}, "no pairs"),
    ):
        args = {"logits": logits, "labels": labels, "mask": mask, "top": 1} | change
        with pytest.raises(ValueError, match=says):
            losses.pairwise_cringe_loss(**args)


# pairs


def test_the_expected_loss_is_least_at_the_optimum():
    wins = pairs.bradley_terry(REWARD)

    def at(p):
        implied = exact.implied_reward(p, REF, 0.5)
        return pairs.expected_loss(implied, REF, wins).item()

    best = exact.optimal_policy(REF, REWARD, 0.5)
    assert at(REF) == pytest.approx(LOG2)
    for seed in range(20):
        assert at((best + some(15, seed=seed, scale=0.1)).log_softmax(-1)) > at(best)


def test_a_fit_to_exact_frequencies_is_the_optimum():
    chance = REF.exp()[:, None] * REF.exp()[None]
    found = pairs.fit(chance * pairs.bradley_terry(REWARD), REF, 0.5)
    assert torch.allclose(found, exact.optimal_policy(REF, REWARD, 0.5), atol=1e-8)


def test_a_fit_that_has_no_finite_minimum_is_refused():
    wins = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="never lost"):
        pairs.fit(wins, torch.zeros(3).double().log_softmax(-1), 1.0)
    with pytest.raises(ValueError, match="wins must be"):
        pairs.fit(wins[:2], torch.zeros(3).double().log_softmax(-1), 1.0)


def test_drawn_pairs_are_preferred_as_often_as_they_should():
    g = torch.Generator().manual_seed(0)
    data = pairs.draw(REF, REWARD, 200_000, g)
    one = torch.ones(len(data), dtype=torch.float64)
    wins = torch.zeros(15, 15, dtype=torch.float64)
    wins.index_put_((data[:, 1], data[:, 2]), one, accumulate=True)
    met = wins + wins.T
    often = (met > 2000) & ~torch.eye(15, dtype=torch.bool)
    error = (wins / met - pairs.bradley_terry(REWARD))[often]
    sd = (0.25 / met[often]).sqrt()
    assert (error.abs() < 4.5 * sd).all() and often.sum() > 20
    of_both = torch.bincount(data[:, 1:].flatten(), minlength=15) / 400_000
    assert (of_both - REF.exp()).abs().max() < 0.005
    with pytest.raises(ValueError, match="n must be"):
        pairs.draw(REF, REWARD, 0)
    with pytest.raises(ValueError, match="shapes differ"):
        pairs.draw(REF, REWARD[:3], 5)


def test_several_prompts_each_with_its_own_responses():
    sampler = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]).log()
    data = pairs.draw(sampler, torch.zeros(2, 3), 1000)
    assert data.shape == (1000, 3) and set(data[:, 0].tolist()) == {0, 1}
    assert data[data[:, 0] == 0, 1:].max() == 1 and data[data[:, 0] == 1, 1:].min() == 1


def test_the_regret_that_is_foreseen_is_found():
    reward, ref = some(5, seed=3), some(5, seed=4).log_softmax(-1)
    best = exact.optimal_policy(ref, reward, 0.5)
    chance = (2 * ref.exp()[:, None] * ref.exp()[None] * pairs.bradley_terry(reward)).fill_diagonal_(0)  # fmt: skip
    cells = torch.distributions.Multinomial(20_000, chance.flatten() / chance.sum())
    torch.manual_seed(0)
    found = []
    for _ in range(400):
        fitted = pairs.fit(cells.sample().view(5, 5), ref, 0.5)
        value = exact.objective(fitted, ref, reward, 0.5)
        found.append(20_000 / chance.sum() * (exact.objective(best, ref, reward, 0.5) - value))  # fmt: skip
    found = torch.stack(found)
    error = found.std() / len(found) ** 0.5
    ahead = pairs.regret_ahead(ref, ref, reward, 0.5)
    assert abs(found.mean() - ahead) < 4 * error and error < 0.1 * ahead


# words


@pytest.fixture(scope="module")
def reference():
    return words.reference(steps=60)


@pytest.fixture(scope="module")
def table(reference):
    return words.table(reference)


def test_every_response_once(table):
    tokens, mask = words.responses()
    assert len(tokens) == sum(12**k for k in range(5)) == len(tokens.unique(dim=0))
    assert torch.equal(mask.sum(1), (words.lengths() + 1).clamp(max=4))
    assert torch.allclose(table.exp().sum(1), torch.ones(12).double())
    assert words.spell(0, 0) == "e" and words.spell(1, len(tokens) - 1) == "tuuuu"
    assert words.vowels()[-1] == 4 and words.vowels()[0] == 0


def test_the_table_says_what_the_model_says(reference, table):
    g = torch.Generator().manual_seed(0)
    prompts = torch.randint(12, (200,), generator=g)
    chosen = torch.randint(len(words.responses()[0]), (200,), generator=g)
    chosen[:20] = torch.arange(20)  # short ones are rare
    tokens, mask = words.sequences(prompts, chosen)
    found = losses.sequence_logps(reference(tokens), tokens, mask)
    assert torch.allclose(found.double(), table[prompts, chosen], atol=1e-4)


def test_training_moves_towards_the_reward(reference, table):
    reward = words.vowels().expand(12, -1)
    data = pairs.draw(table, reward, 640, torch.Generator().manual_seed(0))

    def value(model):
        return (words.table(model).exp() * reward).sum(1).mean().item()

    before = {name: p.clone() for name, p in reference.named_parameters()}
    start = value(reference)
    seen = []
    trained = methods.offline(
        *(reference, data, 0.3, 2e-3, 2),
        each=lambda step, policy, loss: seen.append(loss.mean().item()),
    )
    assert seen[0] == pytest.approx(LOG2, abs=1e-5) and len(seen) == 20
    assert value(trained) > start + 0.1
    assert value(methods.offline(reference, data, 0.3, 2e-3, 2, kind="cringe")) > start
    assert value(methods.offline(reference, data, 0.3, 2e-3, 2, kind="ipo")) > start
    assert value(methods.online(reference, reward, 640, 5, 0.3, 2e-3, 2)) > start + 0.1
    for name, p in reference.named_parameters():
        assert torch.equal(p, before[name]) and not p.requires_grad
    with pytest.raises(ValueError, match="kind is 'dop'"):
        methods.offline(reference, data, 0.3, 2e-3, 2, kind="dop")
    with pytest.raises(ValueError, match="epochs"):
        methods.offline(reference, data, 0.3, 2e-3, 0)


def test_steering_by_soft_values_is_the_optimum_and_by_means_is_not(table):
    reward = words.vowels().expand(12, -1)
    best = exact.optimal_policy(table, reward, 0.5)
    assert torch.allclose(words.controlled(table, reward, 0.5), best, atol=1e-8)
    by_mean = words.controlled(table, reward, 0.5, soft=False)
    assert torch.allclose(by_mean.exp().sum(1), torch.ones(12).double())
    assert (exact.kl(by_mean, best) > 0.001).all()
    # the first letter after "e", by hand: its own chance, and the mean of what may follow
    begins = torch.stack([words.responses()[0][:, 0] == c for c in range(13)])
    ahead = begins.double() @ table[0].exp()
    mean = begins.double() @ (table[0].exp() * reward[0]) / ahead
    wanted = (ahead.log() + mean / 0.5).softmax(0)
    assert torch.allclose(begins.double() @ by_mean[0].exp(), wanted)


def test_a_bonus_explains_what_labels_add():
    """On pairs of all letters the loss with a bonus is the loss without, of labels shifted by it."""
    reference, length = words.reference(steps=2), words.lengths().double()
    data = pairs.draw(
        words.table(reference), words.vowels().expand(12, -1), 64
    )  # one batch: one loss, at the reference itself
    seen = []
    methods.offline(
        *(reference, data, 0.5, 1e-3, 1),
        each=lambda step, policy, loss: seen.append(loss),
        bonus=length,
    )
    wanted = F.softplus(length[data[:, 2]] - length[data[:, 1]])
    assert torch.allclose(
        seen[0].double().sort().values, wanted.sort().values, atol=1e-5
    )


class Vowels(torch.nn.Module):
    """A reward model that is right."""

    def forward(self, tokens):
        table = torch.tensor([c in words.VOWELS for c in words.LETTERS] + [False])
        return table[tokens[:, 1:]].sum(1).float()


def test_rejection_sampling_comes_near_to_the_tilted_policy(table):
    reward = words.vowels().expand(12, -1)
    g = torch.Generator().manual_seed(0)
    made = methods.rejection_sampled(Vowels(), table, 1.0, 8000, g, 64, 2)
    assert made.shape == (8000, 3)
    mean = reward[0][made[:, 1:]].mean().item()
    wanted = (exact.optimal_policy(table, reward, 1.0).exp() * reward).sum(1).mean()
    assert mean == pytest.approx(wanted.item(), abs=0.1)
    a, b = reward[0][made[:, 1]], reward[0][made[:, 2]]
    share = (a > b).double().sum() / (a != b).sum()
    expected = torch.sigmoid((a - b).abs())[a != b].mean()
    assert share.item() == pytest.approx(expected.item(), abs=0.03)
    for change in ({"n": 0}, {"kept": 3}, {"kept": 66}):
        args = {"n": 4, "candidates": 64, "kept": 8} | change
        with pytest.raises(ValueError):
            methods.rejection_sampled(Vowels(), table, 1.0, generator=g, **args)


def test_a_reward_model_learns_and_scores_every_response(reference, table):
    reward = words.vowels().expand(12, -1)
    data = pairs.draw(table, 5 * reward, 1280, torch.Generator().manual_seed(0))
    scorer = methods.reward_model(reference, data, 2e-3, 3)
    scores = methods.scores(scorer)
    assert scores.shape == table.shape
    weights = table.exp() / 12
    centred = scores - (scores * table.exp()).sum(1, keepdim=True)
    truth = reward - (reward * table.exp()).sum(1, keepdim=True)
    both = (weights * centred * truth).sum()
    size = ((weights * centred**2).sum() * (weights * truth**2).sum()).sqrt()
    assert both / size > 0.6


def test_laughs():
    assert len(laughs.STATES) == 7 and len(laughs.RESPONSES) == 15
    assert REF.exp().sum().item() == pytest.approx(1)
    for response, points in zip(laughs.RESPONSES, REWARD.tolist(), strict=True):
        assert points == sum(1 for k, _ in itertools.groupby(response)), (
            "each run of the same syllable is worth one point"
        )
    assert (laughs.transitions(0.3).sum(-1) - laughs.transitions().sum(-1)).abs().max() < 1e-12  # fmt: skip


# the library


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory):
    """TRL's trainer over a small Llama in float64 whose policy is not its reference any more."""
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    from mlbook.common.lm import Transformer, to_llama

    disable_progress_bars()
    torch.manual_seed(0)
    names = {c: i for i, c in enumerate([*words.LETTERS, "<end>"])}
    alphabet = Tokenizer(models.WordLevel(names, unk_token="<end>"))
    alphabet.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    rows = [
        {"prompt": "t", "chosen": "one", "rejected": "rash"},
        {"prompt": "st", "chosen": "a", "rejected": "ring"},
        {"prompt": "oth", "chosen": "er", "rejected": ""},
    ]

    def make(loss_type):
        args = DPOConfig(
            str(tmp_path_factory.mktemp("trl")),
            loss_type=[loss_type],
            beta=0.3,
            label_smoothing=0.1 if loss_type == "robust" else 0.0,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=3,
        )
        reference = to_llama(Transformer(13, 16, layers=1, heads=2)).double()
        policy = to_llama(Transformer(13, 16, layers=1, heads=2)).double()
        tokens = PreTrainedTokenizerFast(
            tokenizer_object=alphabet, eos_token="<end>", pad_token="<end>"
        )
        return DPOTrainer(
            policy.requires_grad_(True),
            ref_model=reference,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokens,
        )

    return make


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ("sigmoid", "ipo", "robust"))
def test_trl_computes_the_same_loss(trl_trainer, kind):
    trainer = trl_trainer(kind)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    mask = batch.pop("completion_mask")
    policy, ref = (
        losses.sequence_logps(m(**batch).logits, batch["input_ids"], mask)
        for m in (trainer.model, trainer.ref_model)
    )
    if kind == "sigmoid":
        ours = losses.dpo_loss(*policy.chunk(2), *ref.chunk(2), 0.3)[0]
    elif kind == "ipo":  # means over tokens, as TRL takes them
        n = mask.sum(1).double()
        ours = losses.ipo_loss(*(policy / n).chunk(2), *(ref / n).chunk(2), 0.3)[0]
    else:
        chosen, rejected = policy.chunk(2)
        swapped = rejected, chosen, *reversed(ref.chunk(2))
        right = losses.dpo_loss(chosen, rejected, *ref.chunk(2), 0.3)[0]
        ours = (0.9 * right - 0.1 * losses.dpo_loss(*swapped, 0.3)[0]) / 0.8
    assert ours.dtype == torch.float64
    assert ours.mean().item() == pytest.approx(theirs.item(), abs=1e-6)
    grads = [
        torch.autograd.grad(loss, trainer.model.parameters(), retain_graph=True)
        for loss in (ours.mean(), theirs)
    ]
    # TRL takes logarithms of probabilities in float32, whatever the model's numbers are.
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


# what used to pass in silence


def test_forward_kl_where_the_reference_never_answers_so():
    """A response of probability zero changes nothing about the others."""
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    reward = torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64)
    for penalty in ("kl", "forward-kl", "chi2"):
        with_it = exact.regularised(ref, reward, 1.0, penalty).exp()
        without = exact.regularised(ref[:2], reward[:2], 1.0, penalty).exp()
        assert torch.allclose(with_it[:2], without, atol=1e-9) and not with_it[2]


def test_gradients_of_a_divergence_with_a_forbidden_response():
    z = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    never = torch.tensor([-torch.inf], dtype=torch.float64)
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    policy = torch.cat((z.log_softmax(0), never))
    (gradient,) = torch.autograd.grad(exact.kl(policy, ref), z)
    (alone,) = torch.autograd.grad(exact.kl(z.log_softmax(0), ref[:2]), z)
    assert torch.allclose(gradient, alone) and gradient.isfinite().all()


def test_narrow_types_settle_on_the_same_values():
    reward = torch.ones(1, 1, dtype=torch.float64)
    ref = torch.zeros(1, 1, dtype=torch.float64)
    stay = torch.ones(1, 1, 1, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        some = (x.to(dtype) for x in (reward, ref, stay))
        value = exact.soft_value_iteration(*some, 1.0, 0.98)[1]
        assert value.dtype == dtype and float(value) == pytest.approx(50, rel=4e-3)


def test_a_tilt_that_overflows_is_refused():
    ref = torch.tensor([0.5, 0.5]).log()
    with pytest.raises(ValueError, match="too large"):
        exact.optimal_policy(ref, torch.tensor([1e38, 0.0]), 1e-3)


@pytest.mark.parametrize(
    "call",
    (
        lambda: pairs.bradley_terry(torch.zeros(2, 3)),
        lambda: pairs.expected_loss(*[torch.zeros(2, 3)] * 2, torch.zeros(3, 3)),
        lambda: pairs.expected_loss(torch.zeros(3), torch.zeros(2), torch.zeros(3, 3)),
        lambda: pairs.draw(torch.tensor([0.5, 0.5]), torch.zeros(2), 3),
        lambda: pairs.draw(torch.tensor([0.5, 0.5]).log(), torch.tensor([0, torch.nan]), 3),
        lambda: pairs.fit(torch.ones(2, 2), torch.tensor([0.5, 0.5]).log(), -0.5),
        lambda: pairs.fit(torch.full((2, 2), torch.inf), torch.tensor([0.5, 0.5]).log(), 1.0),
        lambda: pairs.regret_ahead(*[torch.tensor([0.5, 0.5]).log()] * 2, torch.zeros(2), -1.0),
        lambda: pairs.regret_ahead(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log(), torch.zeros(2), 1.0),
        lambda: losses.sequence_logps(torch.zeros(1, 2, 3), torch.zeros(1, 2), torch.tensor([[0, 1]])),
        lambda: losses.sequence_logps(torch.zeros(0, 2, 3), torch.zeros(0, 2).long(), torch.zeros(0, 2)),
    ),
)  # fmt: skip
def test_odd_inputs_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_nan_at_padding_leaves_the_gradient_alone():
    logits = torch.randn(1, 4, 5, dtype=torch.float64)
    logits[0, 2:] = torch.nan
    logits.requires_grad_(True)
    labels, mask = torch.tensor([[1, 2, 3, 0]]), torch.tensor([[0, 1, 1, 0]])
    losses.sequence_logps(logits, labels, mask).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, :2].abs().sum() > 0


@pytest.mark.parametrize("kind", ("float", "uint8", "two"))
def test_cringe_takes_a_mask_of_any_type(kind):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, generator=g)
    labels = torch.randint(7, (4, 5), generator=g)
    mask = torch.tensor([[0, 0, 1, 1, 0]]).repeat(4, 1).bool()
    other = {"float": mask.float() * 0.5, "uint8": mask.to(torch.uint8) * 255}
    other = other.get(kind, mask.long() * 2)
    same = [
        losses.pairwise_cringe_loss(
            logits, labels, m, generator=torch.Generator().manual_seed(1)
        )
        for m in (mask, other)
    ]
    assert torch.equal(*same)


def test_chances_in_place_of_labels_give_the_mean_loss():
    """Which of a pair stands first does not matter then."""
    reference = words.reference(steps=3)
    data = pairs.draw(
        words.table(reference),
        words.vowels().expand(12, -1),
        64,
        torch.Generator().manual_seed(0),
    )
    first = []
    keep = lambda step, policy, loss: first.append(loss.mean().item())  # noqa: E731
    number = torch.arange(22_621).double()
    straight = number.expand(12, -1) * 1e-4
    turned = data[:, [0, 2, 1]]
    for some, chances in ((data, straight), (turned, straight)):
        methods.offline(reference, some, 0.3, 1e-3, 3, each=keep, chances=chances)
    assert first[:3] == pytest.approx(first[3:]) and first[0] == pytest.approx(LOG2)
    assert first[2] < LOG2 - 1e-4  # margins are no longer zero
    with pytest.raises(ValueError, match="chances"):
        methods.offline(reference, data, 0.3, 0.0, 1, kind="ipo", chances=straight)


def test_rounds_of_the_reference_ask_about_what_it_writes(monkeypatch):
    """With own=False every round has pairs of the reference; otherwise only the first, before anything was learnt."""
    reference, seen = words.reference(steps=3), []
    draw = pairs.draw
    monkeypatch.setattr(pairs, "draw", lambda p, *r: (seen.append(p), draw(p, *r))[1])
    for own in (False, True):
        reward = words.vowels().expand(12, -1)
        methods.online(reference, reward, 128, 2, 0.3, 1e-2, 1, own=own)
    start = words.table(reference)
    same = [torch.allclose(p, start) for p in seen]
    assert same == [True, True, True, False]
