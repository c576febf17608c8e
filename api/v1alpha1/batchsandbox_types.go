package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// BatchSandbox is a number of identical sandboxes, taken from a Pool or made from
// a template, with an optional task in each and an optional expiry.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +operator-sdk:csv:customresourcedefinitions:displayName="BatchSandbox",resources={{Pod,v1,},{Event,events.k8s.io/v1,}}
// +kubebuilder:resource:path=batchsandboxes,scope=Namespaced,shortName=bsbx
// +kubebuilder:printcolumn:name="DESIRED",type=integer,JSONPath=`.spec.replicas`,description="Sandboxes asked for"
// +kubebuilder:printcolumn:name="TOTAL",type=integer,JSONPath=`.status.replicas`,description="Sandboxes that exist"
// +kubebuilder:printcolumn:name="ALLOCATED",type=integer,JSONPath=`.status.allocated`,description="Sandboxes held from the pool, or bound to a node"
// +kubebuilder:printcolumn:name="READY",type=integer,JSONPath=`.status.ready`,description="Sandboxes whose pod is Ready"
// +kubebuilder:printcolumn:name="TASK_RUNNING",type=integer,priority=1,JSONPath=`.status.taskRunning`
// +kubebuilder:printcolumn:name="TASK_SUCCEED",type=integer,priority=1,JSONPath=`.status.taskSucceed`
// +kubebuilder:printcolumn:name="TASK_FAILED",type=integer,priority=1,JSONPath=`.status.taskFailed`
// +kubebuilder:printcolumn:name="TASK_UNKNOWN",type=integer,priority=1,JSONPath=`.status.taskUnknown`
// +kubebuilder:printcolumn:name="EXPIRE",type=string,JSONPath=`.status.expires`,description="When it will be deleted"
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name must be at most 63 characters: it becomes a label value"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !has(self.spec.shardPatches) || size(self.spec.shardPatches) <= self.spec.replicas",optionalOldSelf=true,message="spec.shardPatches must not be longer than spec.replicas"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !has(self.spec.shardTaskPatches) || size(self.spec.shardTaskPatches) <= self.spec.replicas",optionalOldSelf=true,message="spec.shardTaskPatches must not be longer than spec.replicas"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !has(self.spec.minAvailable) || self.spec.minAvailable <= self.spec.replicas",optionalOldSelf=true,message="spec.minAvailable must be at most spec.replicas"
type BatchSandbox struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec BatchSandboxSpec `json:"spec"`
	// +optional
	Status BatchSandboxStatus `json:"status,omitzero"`
}

// BatchSandboxList is a list of BatchSandboxes.
//
// +kubebuilder:object:root=true
type BatchSandboxList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BatchSandbox `json:"items"`
}

// BatchSandboxSpec says how many sandboxes, where they come from and what runs in them.
//
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || has(self.poolRef) != has(self.template) || has(self.poolRef) && self.poolRef == '*'",optionalOldSelf=true,message="exactly one of spec.poolRef and spec.template must be set"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !has(self.poolRef) || self.poolRef != '*' || has(self.template) || has(self.poolSelector)",optionalOldSelf=true,message="spec.poolRef '*' needs spec.template or spec.poolSelector, which say what is needed of the pool"
// +kubebuilder:validation:XValidation:rule="oldSelf.hasValue() || !has(self.poolSelector) || has(self.poolRef) && self.poolRef == '*'",optionalOldSelf=true,message="spec.poolSelector is for spec.poolRef '*' only"
// +kubebuilder:validation:XValidation:rule="has(self.poolSelector) == has(oldSelf.poolSelector) && (!has(self.poolSelector) || self.poolSelector == oldSelf.poolSelector)",message="spec.poolSelector is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.poolRef) == has(oldSelf.poolRef) && (!has(self.poolRef) || self.poolRef == oldSelf.poolRef || oldSelf.poolRef == '*' || self.poolRef == '*')",message="spec.poolRef is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.poolRef) || self.poolRef != '*' || !has(oldSelf.poolRef) || oldSelf.poolRef == '*'",message="spec.poolRef: the name of the chosen Pool stands here in place of '*', for good; apply that name, or have your tool leave the field as it is (GitOps: ignore differences at /spec/poolRef)"
// +kubebuilder:validation:XValidation:rule="has(self.template) == has(oldSelf.template) && (!has(self.template) || self.template == oldSelf.template)",message="spec.template is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.shardPatches) || has(self.template) && !has(self.poolRef)",message="spec.shardPatches patch the pods that are made from spec.template, and none are"
// +kubebuilder:validation:XValidation:rule="has(self.shardPatches) == has(oldSelf.shardPatches) && (!has(self.shardPatches) || self.shardPatches == oldSelf.shardPatches)",message="spec.shardPatches is immutable"
// +kubebuilder:validation:XValidation:rule="!has(self.shardTaskPatches) || has(self.taskTemplate)",message="spec.shardTaskPatches patch spec.taskTemplate, which is not set"
// +kubebuilder:validation:XValidation:rule="has(self.taskTemplate) == has(oldSelf.taskTemplate) && (!has(self.taskTemplate) || self.taskTemplate == oldSelf.taskTemplate)",message="spec.taskTemplate is immutable"
// +kubebuilder:validation:XValidation:rule="has(self.shardTaskPatches) == has(oldSelf.shardTaskPatches) && (!has(self.shardTaskPatches) || self.shardTaskPatches == oldSelf.shardTaskPatches)",message="spec.shardTaskPatches is immutable"
// +kubebuilder:validation:XValidation:rule="(has(self.minAvailable) ? self.minAvailable : 0) == (has(oldSelf.minAvailable) ? oldSelf.minAvailable : 0)",message="spec.minAvailable is immutable"
type BatchSandboxSpec struct {
	// replicas is the number of sandboxes, 0 to 5000. Default 1. Lowering it gives
	// up the sandboxes of the highest shards.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=5000
	// +operator-sdk:csv:customresourcedefinitions:type=spec,xDescriptors="urn:alm:descriptor:com.tectonic.ui:podCount"
	Replicas *int32 `json:"replicas,omitempty"`

	// poolRef is the name of a Pool of the same namespace to take the sandboxes
	// from. Exactly one of poolRef and template is set; immutable. "*" has the operator
	// choose a Pool that has what template and poolSelector ask for, and write its name here
	// when it takes the first sandboxes from it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	PoolRef string `json:"poolRef,omitempty"`

	// poolSelector are labels that the Pool must have which is chosen for poolRef "*". Immutable.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	PoolSelector map[string]string `json:"poolSelector,omitempty"`

	// template is the pod template to make the sandboxes from. With poolRef "*" it says what
	// is needed of the Pool: in its sandbox container the image and at least the requests, and
	// of its pods the nodeSelector, tolerations and runtimeClassName. Immutable.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	Template *PodTemplate `json:"template,omitempty"`

	// shardPatches[i] is a strategic merge patch on template for sandbox i.
	// Sandboxes past the end of the list are made from the template as it is. Immutable.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5000
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	ShardPatches []Patch `json:"shardPatches,omitempty"`

	// minAvailable is how many sandboxes are delivered at once or not at all: 0 (default)
	// to replicas. Of a pool nothing is held before so many can be; until then the
	// BatchSandbox keeps its place, and younger ones get what it leaves. From a template
	// the pods are made at once, and endpoints and status.ready show nothing before so many
	// are ready, and no task starts. After that, and after a loss, sandboxes come as they can
	// be had. Immutable.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	MinAvailable int32 `json:"minAvailable,omitempty"`

	// expireTime is the time after which the BatchSandbox is deleted. It may be
	// moved. With ttlSeconds also set, the earlier wins.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +kubebuilder:validation:Pattern=`^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$`
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	ExpireTime *metav1.Time `json:"expireTime,omitempty"`

	// ttlSeconds is the time in seconds from creation to deletion, at most 100 years.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=3153600000
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	TTLSeconds *int64 `json:"ttlSeconds,omitempty"`

	// taskTemplate is the task to run in every sandbox. Immutable.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	TaskTemplate *TaskTemplate `json:"taskTemplate,omitempty"`

	// shardTaskPatches[i] is a strategic merge patch on taskTemplate for sandbox i:
	// env merges by name; command and args replace. Sandboxes past the end of the
	// list run the template as it is. Immutable.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5000
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	ShardTaskPatches []Patch `json:"shardTaskPatches,omitempty"`

	// pause is for clients of OpenSandbox, which can only be told that nothing is paused:
	// true is refused.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!self",message="sandboxes cannot be paused; delete the BatchSandbox, or set spec.replicas to 0, to give them up"
	Pause *bool `json:"pause,omitempty"`

	// taskResourcePolicyWhenCompleted says what happens to a sandbox whose task has
	// ended: Retain (default) keeps it until the BatchSandbox is deleted, Release
	// gives it back at once.
	// +optional
	// +kubebuilder:default=Retain
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	TaskResourcePolicyWhenCompleted TaskResourcePolicy `json:"taskResourcePolicyWhenCompleted,omitempty"`
}

// Patch is a strategic merge patch, written as YAML or JSON.
//
// +kubebuilder:validation:Type=object
// +kubebuilder:pruning:PreserveUnknownFields
type Patch struct {
	runtime.RawExtension `json:",inline"`
}

// Phase sums a BatchSandbox up in one word.
type Phase string

const (
	// PhasePending: not every sandbox asked for is ready yet.
	PhasePending Phase = "Pending"
	// PhaseSucceed: every sandbox asked for is ready.
	PhaseSucceed Phase = "Succeed"
	// PhaseFailed: a sandbox cannot become ready.
	PhaseFailed Phase = "Failed"
)

// BatchSandboxStatus is what the operator last saw of a BatchSandbox.
type BatchSandboxStatus struct {
	// observedGeneration is the metadata.generation this status speaks of.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// replicas is the number of sandboxes that exist.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Replicas int32 `json:"replicas"`

	// selector finds the pods of the sandboxes by their labels, for the scale subresource.
	// Empty where the sandboxes come from a pool: no label of its pods says who holds them.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Selector string `json:"selector,omitempty"`

	// allocated is the number of sandboxes held from the pool or, in template mode,
	// bound to a node.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Allocated int32 `json:"allocated"`

	// ready is the number of sandboxes whose pod is Ready.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Ready int32 `json:"ready"`

	// taskPending is the number of shards whose task was not started yet.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	TaskPending int32 `json:"taskPending"`

	// taskRunning is the number of shards whose task runs.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	TaskRunning int32 `json:"taskRunning"`

	// taskSucceed is the number of shards whose task ended with exit code 0.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	TaskSucceed int32 `json:"taskSucceed"`

	// taskFailed is the number of shards whose task failed or could not start.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	TaskFailed int32 `json:"taskFailed"`

	// taskUnknown is the number of shards whose executor has not answered for 30 s.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	TaskUnknown int32 `json:"taskUnknown"`

	// succeededShards are the shards whose task succeeded, as "0-5,7".
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	SucceededShards string `json:"succeededShards,omitempty"`

	// failedShards are the shards whose task failed, as "0-5,7".
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	FailedShards string `json:"failedShards,omitempty"`

	// restarted is the number of sandboxes in which a container restarted after
	// they were handed over: what ran there is gone.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Restarted int32 `json:"restarted,omitempty"`

	// ended is the number of sandboxes whose containers finished by themselves and are
	// not restarted. Such a sandbox keeps its shard and its pod, so that its log can be
	// read and nothing runs twice, until it is released.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Ended int32 `json:"ended,omitempty"`

	// minAvailableReached says that spec.minAvailable sandboxes were delivered once: from
	// then on they come as they can be had.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	MinAvailableReached bool `json:"minAvailableReached,omitempty"`

	// phase is Succeed while every sandbox asked for is ready, Failed when one
	// cannot become ready, else Pending. A sandbox that waits for a node or a volume
	// is Pending: an autoscaler may still bring it.
	// +optional
	// +kubebuilder:validation:Enum=Pending;Succeed;Failed
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Phase Phase `json:"phase,omitempty"`

	// expireTime is when the BatchSandbox will be deleted: the earlier of
	// spec.expireTime and creation plus spec.ttlSeconds.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	ExpireTime *metav1.Time `json:"expireTime,omitempty"`

	// expires is expireTime for people, as the column EXPIRE shows it: a time in
	// RFC 3339, or `<none>`. (kubectl leaves the cell of a missing field blank, as
	// if the operator had not looked yet.) Programs read expireTime.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Expires string `json:"expires,omitempty"`

	// failedTasks are at most ten of the failed tasks.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	// +operator-sdk:csv:customresourcedefinitions:type=status
	FailedTasks []FailedTask `json:"failedTasks,omitempty"`

	// conditions are Ready, TasksCompleted, SandboxesRestarted, SandboxesEnded,
	// PoolAllocationPending, PodFailed and Deleting.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +operator-sdk:csv:customresourcedefinitions:type=status,xDescriptors="urn:alm:descriptor:io.kubernetes.conditions"
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// DesiredReplicas returns spec.replicas, or its default where it is unset.
func (b *BatchSandbox) DesiredReplicas() int32 {
	if b.Spec.Replicas == nil {
		return 1
	}
	return *b.Spec.Replicas
}

// Delivered says that no sandboxes are to be had at once, or that spec.minAvailable of them
// were delivered once. The status says so, and so do endpoints: where the operator ended
// between the two writes, the status does not yet.
func (b *BatchSandbox) Delivered() bool {
	return b.Spec.MinAvailable == 0 || b.Status.MinAvailableReached || b.Annotations[AnnotationEndpoints] != ""
}

// LeastAtOnce returns how many sandboxes the BatchSandbox takes at least at once, 0 where it
// takes what comes.
func (b *BatchSandbox) LeastAtOnce() int {
	if b.Delivered() {
		return 0
	}
	return int(min(b.Spec.MinAvailable, b.DesiredReplicas()))
}
