// Package v1alpha1 is the API of the OpenSandbox operator: the Pool and
// BatchSandbox kinds of group sandbox.opensandbox.io, and every name that goes
// over the wire (annotations, labels, finalizers, condition types and reasons).
// It imports nothing but Kubernetes' API machinery.
//
// +kubebuilder:object:generate=true
// +groupName=sandbox.opensandbox.io
package v1alpha1
