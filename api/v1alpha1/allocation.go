package v1alpha1

// AllocStatus is the value of AnnotationAllocStatus: which pool pods a
// BatchSandbox holds.
// +kubebuilder:object:generate=false
type AllocStatus struct {
	// Pods in shard order. An empty string is a shard without a sandbox; the list
	// ends at the last filled shard.
	Pods []string `json:"pods"`

	// PoolRef is the name of the Pool that the pods are of. Programs read it; the operator
	// goes by spec.poolRef.
	PoolRef string `json:"poolRef,omitempty"`

	// Restarts are the container restart counts that the pods had when they were
	// handed over, as ranges of equal counts in shard order. Shards outside every
	// range had none.
	Restarts []RestartRange `json:"restarts,omitempty"`
}

// RestartRange gives the shards From to To (inclusive) one restart count.
// +kubebuilder:object:generate=false
type RestartRange struct {
	From  int32 `json:"from"`
	To    int32 `json:"to"`
	Count int32 `json:"count"`
}

// AllocRelease is the value of AnnotationAllocRelease: pool pods that were given
// up and are not clean yet. Order has no meaning.
// +kubebuilder:object:generate=false
type AllocRelease struct {
	Pods []string `json:"pods"`
}
