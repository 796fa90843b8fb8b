"""What FHIR says of a request: the types of resources there are, and which interaction a method and a path are."""

from __future__ import annotations

import re

CREATE, READ, UPDATE, DELETE, SEARCH = "c", "r", "u", "d", "s"
ANY_TYPE = "*"

RESOURCE_TYPES = frozenset(
    """
    Account ActivityDefinition ActorDefinition AdministrableProductDefinition AdverseEvent AllergyIntolerance
    Appointment AppointmentResponse ArtifactAssessment AuditEvent Basic Binary BiologicallyDerivedProduct
    BiologicallyDerivedProductDispense BodyStructure Bundle CapabilityStatement CarePlan CareTeam CatalogEntry
    ChargeItem ChargeItemDefinition Citation Claim ClaimResponse ClinicalImpression ClinicalUseDefinition CodeSystem
    Communication CommunicationRequest CompartmentDefinition Composition ConceptMap Condition ConditionDefinition
    Consent Contract Coverage CoverageEligibilityRequest CoverageEligibilityResponse DetectedIssue Device
    DeviceAssociation DeviceDefinition DeviceDispense DeviceMetric DeviceRequest DeviceUsage DeviceUseStatement
    DiagnosticReport DocumentManifest DocumentReference EffectEvidenceSynthesis Encounter EncounterHistory Endpoint
    EnrollmentRequest EnrollmentResponse EpisodeOfCare EventDefinition Evidence EvidenceReport EvidenceVariable
    ExampleScenario ExplanationOfBenefit FamilyMemberHistory Flag FormularyItem GenomicStudy Goal GraphDefinition
    Group GuidanceResponse HealthcareService ImagingSelection ImagingStudy Immunization ImmunizationEvaluation
    ImmunizationRecommendation ImplementationGuide Ingredient InsurancePlan InventoryItem InventoryReport Invoice
    Library Linkage List Location ManufacturedItemDefinition Measure MeasureReport Media Medication
    MedicationAdministration MedicationDispense MedicationKnowledge MedicationRequest MedicationStatement
    MedicinalProduct MedicinalProductAuthorization MedicinalProductContraindication MedicinalProductDefinition
    MedicinalProductIndication MedicinalProductIngredient MedicinalProductInteraction MedicinalProductManufactured
    MedicinalProductPackaged MedicinalProductPharmaceutical MedicinalProductUndesirableEffect MessageDefinition
    MessageHeader MolecularSequence NamingSystem NutritionIntake NutritionOrder NutritionProduct Observation
    ObservationDefinition OperationDefinition OperationOutcome Organization OrganizationAffiliation
    PackagedProductDefinition Parameters Patient PaymentNotice PaymentReconciliation Permission Person PlanDefinition
    Practitioner PractitionerRole Procedure Provenance Questionnaire QuestionnaireResponse RegulatedAuthorization
    RelatedPerson RequestGroup RequestOrchestration Requirements ResearchDefinition ResearchElementDefinition
    ResearchStudy ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule SearchParameter ServiceRequest Slot
    Specimen SpecimenDefinition StructureDefinition StructureMap Subscription SubscriptionStatus SubscriptionTopic
    Substance SubstanceDefinition SubstanceNucleicAcid SubstancePolymer SubstanceProtein
    SubstanceReferenceInformation SubstanceSourceMaterial SubstanceSpecification SupplyDelivery SupplyRequest Task
    TerminologyCapabilities TestPlan TestReport TestScript Transport ValueSet VerificationResult VisionPrescription
    """.split()  # noqa: SIM905 - a list of 180 quoted names would be no easier to read
)
"""Source: the resource lists of FHIR 4.0.1 and 5.0.0."""

RESOURCE_ID = re.compile(r"[A-Za-z0-9.\-]{1,64}\Z")
"""Source: FHIR, the datatype id."""

_OF_TYPE = {"GET": "s", "HEAD": "s", "POST": "c", "PUT": "cu", "PATCH": "u", "DELETE": "d"}
_OF_RECORD = {"GET": "r", "HEAD": "r", "PUT": "u", "PATCH": "u", "DELETE": "d"}
_READS = frozenset({"GET", "HEAD"})


def interaction_of(method: str, path: str) -> tuple[str, str] | None:
    """(type of resource, letters of the interactions) of a request below a FHIR base; None for what has none.

    Shapes: `path` follows the base's slash, percent-decoded, without a query; the type is `*` where all are meant.
    Operations (`$everything`), batches and types that FHIR does not have are None: no scope allows them.
    Source: FHIR, RESTful API; SMART App Launch 2.2, scopes: `r` is also vread and the history of a record, `s` also the
    history of a type; a conditional update (PUT without id) may create.
    """
    first, *rest = path.split("/")
    if first in ("", "_history"):
        return (ANY_TYPE, SEARCH) if method in _READS and not rest else None
    if first == "metadata":
        return ("CapabilityStatement", READ) if method in _READS and not rest else None
    if first not in RESOURCE_TYPES:
        return None
    if not rest:
        return _lettered(first, _OF_TYPE.get(method))
    if rest == ["_search"]:
        return (first, SEARCH) if method == "POST" or method in _READS else None
    if rest == ["_history"]:
        return (first, SEARCH) if method in _READS else None
    if RESOURCE_ID.match(rest[0]) is None:
        return None
    return _of_record(method, first, rest[1:])


def _of_record(method: str, resource: str, below: list[str]) -> tuple[str, str] | None:
    """Of a record, its versions, or the compartment it stands for."""
    if not below:
        return _lettered(resource, _OF_RECORD.get(method))
    if method not in _READS:
        return None
    if below[0] == "_history" and (len(below) == 1 or (len(below) == 2 and RESOURCE_ID.match(below[1]))):
        return resource, READ
    if len(below) == 1 and (below[0] in RESOURCE_TYPES or below[0] == ANY_TYPE):
        return below[0], SEARCH
    return None


def _lettered(resource: str, letters: str | None) -> tuple[str, str] | None:
    return (resource, letters) if letters is not None else None
