"""What samples come to, on made-up ones."""

from PIL import Image

from diffopt.pipeline.metrics import METRICS, timed_metrics
from diffopt.results.result import Metrics
from diffopt.results.samples import Part, Sample

PICTURE = Image.new("RGB", (8, 8))


def test_summaries():
    samples = [Sample(s, (Part("denoise", 8, r, 0.1, 0.5, 0.2),)) for s, r in ((1.0, 4.0), (2.0, 5.0), (4.0, 9.0))]
    found = timed_metrics(samples, [PICTURE, PICTURE])
    assert found["latency_s"].model_dump() == {"samples": (1.0, 2.0, 4.0), "median": 2.0, "q1": 1.5, "q3": 3.0}
    (speed,) = found["stages"]
    assert (speed.name, speed.steps, speed.iterations_per_second) == ("denoise", 8, 5.0)
    assert found["images_per_second"] == 1.0


def test_a_video_counts_as_its_frames():
    sample = Sample(2.0, (Part("denoise", 8, 4.0, 0.1, 0.5, 0.2),))
    assert timed_metrics([sample, sample], [[PICTURE] * 5])["images_per_second"] == 2.5


def test_stages_have_speeds_of_their_own_and_one_split():
    parts = (Part("small", 100, 20.0, None, 5.0, None), Part("large", 50, 10.0, 0.5, 5.0, 2.0))
    found = timed_metrics([Sample(13.0, parts)] * 2, [])
    speeds = found["stages"]
    assert [(s.name, s.steps, s.iterations_per_second) for s in speeds] == [("small", 100, 20.0), ("large", 50, 10.0)]
    split = found["split_s"]
    assert (split.text_encode, split.denoise, split.decode) == (0.5, 10.0, 2.0)


def test_a_part_that_a_pipeline_lacks_has_no_median():
    sample = Sample(2.0, (Part("denoise", 1, 1.0, None, 1.0, None),))
    split = timed_metrics([sample, sample], [])["split_s"]
    assert (split.text_encode, split.denoise, split.decode) == (None, 1.0, None)


def test_every_metric_is_a_field_of_a_row():
    assert set(METRICS) <= set(Metrics.model_fields)
