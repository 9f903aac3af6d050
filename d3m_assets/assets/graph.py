"""The graph: every asset once, behind what it is made from. To add one, write its module and list its class here."""

from __future__ import annotations

from d3m_assets.assets.class_catalog import ClassCatalog
from d3m_assets.assets.class_prompts import ClassPrompts
from d3m_assets.assets.codec_choice import CodecChoice
from d3m_assets.assets.distillation_report import DistillationReport
from d3m_assets.assets.distilled_bundle import DistilledBundle
from d3m_assets.assets.foundation_metrics import FoundationMetrics
from d3m_assets.assets.foundation_model import FoundationModel
from d3m_assets.assets.frontier_metrics import FrontierMetrics
from d3m_assets.assets.image_codes import ImageCodes
from d3m_assets.assets.inverted_embeddings import InvertedEmbeddings
from d3m_assets.assets.payload_choice import PayloadChoice
from d3m_assets.assets.pool_audit import PoolAudit
from d3m_assets.assets.pool_labels import PoolLabels
from d3m_assets.assets.raw_dataset import RawDataset
from d3m_assets.assets.reference_metrics import ReferenceMetrics
from d3m_assets.assets.sample_selection import SampleSelection
from d3m_assets.assets.selection_model import SelectionModel
from d3m_assets.assets.student_metrics import StudentMetrics
from d3m_assets.assets.synthetic_pool import SyntheticPool
from d3m_assets.assets.teacher_model import TeacherModel
from d3m_assets.assets.whole_dataset_metrics import WholeDatasetMetrics
from d3m_assets.planning.asset import Graph

GRAPH = Graph(
    ClassCatalog,
    RawDataset,
    FoundationModel,
    ClassPrompts,
    InvertedEmbeddings,
    SelectionModel,
    CodecChoice,
    ImageCodes,
    SyntheticPool,
    SampleSelection,
    PayloadChoice,
    DistilledBundle,
    TeacherModel,
    PoolLabels,
    ReferenceMetrics,
    FrontierMetrics,
    WholeDatasetMetrics,
    FoundationMetrics,
    StudentMetrics,
    PoolAudit,
    DistillationReport,
)
