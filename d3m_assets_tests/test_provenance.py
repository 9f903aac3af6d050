"""What a Dagster run makes says which run it was."""

from d3m_assets.orchestration.launch import open_instance, run_pending
from d3m_assets_tests import small_runs


def test_artefacts_name_the_run_that_made_them(tmp_path, image_folder, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    pipeline = small_runs.open_pipeline(tmp_path, image_folder(), budgets=("ipc-1",))
    with open_instance(pipeline.settings) as instance:
        try:
            launched = run_pending(pipeline.settings, instance, pipeline)
        finally:
            pipeline.context.close()
        assert launched.done.failed == []
        assert instance.get_run_by_id(launched.run_id) is not None
    keys = [key for asset in pipeline.graph.names for key in pipeline.keys(asset)]
    assert keys
    assert {pipeline.store.manifest(key).provenance["run"] for key in keys} == {launched.run_id}
