package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Pool keeps warm pods ready, from which BatchSandboxes of the same namespace take theirs.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.capacitySpec.poolMin,statuspath=.status.total,selectorpath=.status.selector
// +operator-sdk:csv:customresourcedefinitions:displayName="Pool",resources={{Pod,v1,},{Event,events.k8s.io/v1,}}
// +kubebuilder:resource:path=pools,scope=Namespaced
// +kubebuilder:printcolumn:name="TOTAL",type=integer,JSONPath=`.status.total`,description="Pods of the pool, held or idle"
// +kubebuilder:printcolumn:name="ALLOCATED",type=integer,JSONPath=`.status.allocated`,description="Pods held by BatchSandboxes or being recycled"
// +kubebuilder:printcolumn:name="AVAILABLE",type=integer,JSONPath=`.status.available`,description="Idle pods that are ready"
// +kubebuilder:printcolumn:name="UPDATED",type=integer,JSONPath=`.status.updated`,description="Pods of the current revision"
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name must be at most 63 characters: it becomes a label value"
type Pool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec PoolSpec `json:"spec"`
	// +optional
	Status PoolStatus `json:"status,omitempty"`
}

// PoolList is a list of Pools.
//
// +kubebuilder:object:root=true
type PoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Pool `json:"items"`
}

// PoolSpec says what pods a pool keeps and how many.
type PoolSpec struct {
	// template is the pod template of the warm pods. When it changes, idle pods are
	// replaced a few at a time; held ones are left alone.
	// +required
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	Template *PodTemplate `json:"template"`

	// capacitySpec bounds the number of pods.
	// +required
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	CapacitySpec CapacitySpec `json:"capacitySpec"`

	// scaleStrategy bounds how fast the pool grows.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	ScaleStrategy ScaleStrategy `json:"scaleStrategy,omitempty"`

	// updateStrategy bounds how fast idle pods are replaced when the template changes.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	UpdateStrategy UpdateStrategy `json:"updateStrategy,omitempty"`

	// recycleStrategy says what happens to a sandbox that comes back.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	RecycleStrategy RecycleStrategy `json:"recycleStrategy,omitempty"`

	// taskExecutor configures the executor in the pool's pods.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=spec
	TaskExecutor TaskExecutorSpec `json:"taskExecutor,omitempty"`
}

// CapacitySpec bounds the pods of a pool. With A pods held, D sandboxes asked for
// and not yet served, and I idle pods, the pool is left as it is while
// bufferMin <= I - D <= bufferMax and poolMin <= A + I <= poolMax; otherwise it
// goes to A + D + (bufferMin+bufferMax)/2, rounded up and clamped to
// [poolMin, poolMax]. Idle pods that take too long to become ready do not count, except
// towards poolMax: others are made in their place, and they are deleted a few at a time.
//
// +kubebuilder:validation:XValidation:rule="self.bufferMin <= self.bufferMax",message="bufferMin must be at most bufferMax"
// +kubebuilder:validation:XValidation:rule="self.poolMin <= self.poolMax",message="poolMin must be at most poolMax"
// +kubebuilder:validation:XValidation:rule="self.bufferMin <= self.poolMax",message="bufferMin must be at most poolMax"
type CapacitySpec struct {
	// bufferMin is the least number of idle pods to keep.
	// +required
	// +kubebuilder:validation:Minimum=0
	BufferMin int32 `json:"bufferMin"`

	// bufferMax is the greatest number of idle pods to keep.
	// +required
	// +kubebuilder:validation:Minimum=0
	BufferMax int32 `json:"bufferMax"`

	// poolMin is the least number of pods, held or idle. It is what the scale subresource
	// reads and writes, so that an autoscaler can set it.
	// +required
	// +kubebuilder:validation:Minimum=0
	PoolMin int32 `json:"poolMin"`

	// poolMax is the greatest number of pods, held or idle. Lowering it below the
	// number of held pods stops growth and ends no sandbox.
	// +required
	// +kubebuilder:validation:Minimum=0
	PoolMax int32 `json:"poolMax"`
}

// ScaleStrategy bounds how fast a pool grows.
type ScaleStrategy struct {
	// maxUnavailable is how many pods may be not yet ready at a time while the pool
	// grows: a positive number, or a percentage of the pods the pool is to have,
	// rounded up. Unset: creation is bounded by slow start alone (1, 2, 4, ... at a time).
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == string ? self.matches('^([1-9][0-9]?|100)%$') : self >= 1 && self <= 2147483647",message="maxUnavailable must be a number of at least 1 or a percentage from 1% to 100%"
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
}

// DefaultUpdateMaxUnavailable is what spec.updateStrategy.maxUnavailable is where it is
// not set.
const DefaultUpdateMaxUnavailable = "25%"

// UpdateStrategy bounds how fast idle pods are replaced when the template changes.
type UpdateStrategy struct {
	// maxUnavailable is how many idle pods may be missing or not ready at a time
	// during an update: a number, or a percentage of the idle pods, rounded up.
	// Default 25%. 0 pauses the update.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == string ? self.matches('^([0-9]|[1-9][0-9]|100)%$') : self >= 0 && self <= 2147483647",message="maxUnavailable must be a number of at least 0 or a percentage from 0% to 100%"
	MaxUnavailable *intstr.IntOrString `json:"maxUnavailable,omitempty"`
}

// RecycleType says what happens to a sandbox that comes back.
// +kubebuilder:validation:Enum=Delete;Restart;Noop
type RecycleType string

const (
	// RecycleDelete deletes the pod; the pool makes a new one where it has too few.
	RecycleDelete RecycleType = "Delete"
	// RecycleRestart restarts all containers in place where that is known to leave
	// nothing behind, and deletes the pod elsewhere.
	RecycleRestart RecycleType = "Restart"
	// RecycleNoop hands the sandbox on as it is. Only for users who trust each other.
	RecycleNoop RecycleType = "Noop"
)

// RecycleStrategy says what happens to a sandbox that comes back.
type RecycleStrategy struct {
	// type is Delete (default), Restart or Noop.
	// +optional
	// +kubebuilder:default=Delete
	Type RecycleType `json:"type,omitempty"`
}

// TaskExecutorSpec configures the task executor of a pool's pods.
type TaskExecutorSpec struct {
	// enabled adds the task executor to the pool's pods. Default false.
	// +optional
	Enabled bool `json:"enabled,omitempty"`
}

// PoolStatus is what the operator last saw of a pool.
type PoolStatus struct {
	// observedGeneration is the metadata.generation this status speaks of.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// revision is the hash of the current template.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Revision string `json:"revision,omitempty"`

	// total is the number of pods, held or idle. Terminating pods do not count.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Total int32 `json:"total"`

	// selector finds the pods of the pool by their labels, for the scale subresource.
	// +optional
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Selector string `json:"selector,omitempty"`

	// allocated is the number of pods that are held, being recycled or set aside.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Allocated int32 `json:"allocated"`

	// available is the number of idle pods that are ready.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Available int32 `json:"available"`

	// updated is the number of pods made from the current template.
	// +optional
	// +kubebuilder:default=0
	// +operator-sdk:csv:customresourcedefinitions:type=status
	Updated int32 `json:"updated"`

	// conditions are Ready and, while the pool is being deleted, Deleting.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +operator-sdk:csv:customresourcedefinitions:type=status,xDescriptors="urn:alm:descriptor:io.kubernetes.conditions"
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
