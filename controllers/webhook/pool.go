package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// The rules name the main resource alone: writes of a status never come here. A write
// of a finalizer does where the API server knows no matchConditions (OLM writes none);
// it is let through without a look.
//
// +kubebuilder:webhook:path=/mutate-sandbox-opensandbox-io-v1alpha1-pool,mutating=true,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=pools,verbs=create;update,versions=v1alpha1,name=mpool.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=3,patch=`{"matchConditions": [{"name": "spec-changes", "expression": "oldObject == null || (!has(object.metadata.deletionTimestamp) && object.spec != oldObject.spec)"}]}`
// +kubebuilder:webhook:path=/validate-sandbox-opensandbox-io-v1alpha1-pool,mutating=false,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=pools,verbs=create;update;delete,versions=v1alpha1,name=vpool.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=10,patch=`{"matchConditions": [{"name": "spec-changes-or-delete", "expression": "oldObject == null || object == null || (!has(object.metadata.deletionTimestamp) && object.spec != oldObject.spec)"}]}`

// defaultPool writes the defaults out, so that users see them. A JSON patch leaves
// everything else byte by byte as the user wrote it. Where a strategy is there, its field
// is added and not the whole strategy, which would erase the fields beside it.
func defaultPool(_ context.Context, req admission.Request) admission.Response {
	var pool struct {
		Metadata struct {
			DeletionTimestamp *metav1.Time `json:"deletionTimestamp"`
		} `json:"metadata"`
		Spec *struct {
			UpdateStrategy *struct {
				MaxUnavailable any `json:"maxUnavailable"`
			} `json:"updateStrategy"`
			RecycleStrategy *struct {
				Type string `json:"type"`
			} `json:"recycleStrategy"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(req.Object.Raw, &pool); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	if pool.Metadata.DeletionTimestamp != nil || pool.Spec == nil {
		return admission.Allowed("") // the API server says itself that there must be a spec
	}
	var patch []jsonpatch.Operation
	switch u := pool.Spec.UpdateStrategy; {
	case u == nil:
		patch = append(patch, jsonpatch.NewOperation("add", "/spec/updateStrategy", map[string]any{"maxUnavailable": v1alpha1.DefaultUpdateMaxUnavailable}))
	case u.MaxUnavailable == nil:
		patch = append(patch, jsonpatch.NewOperation("add", "/spec/updateStrategy/maxUnavailable", v1alpha1.DefaultUpdateMaxUnavailable))
	}
	switch r := pool.Spec.RecycleStrategy; {
	case r == nil:
		patch = append(patch, jsonpatch.NewOperation("add", "/spec/recycleStrategy", map[string]any{"type": v1alpha1.RecycleDelete}))
	case r.Type == "":
		patch = append(patch, jsonpatch.NewOperation("add", "/spec/recycleStrategy/type", v1alpha1.RecycleDelete))
	}
	if len(patch) == 0 {
		return admission.Allowed("")
	}
	return admission.Patched("", patch...)
}

type poolValidator struct {
	live  client.Reader
	trial *trial
}

// ValidateCreate tries the template.
func (v *poolValidator) ValidateCreate(ctx context.Context, pool *v1alpha1.Pool) (admission.Warnings, error) {
	return v.checkTemplate(ctx, pool)
}

// ValidateUpdate tries a template that changed. An object that is being deleted or
// keeps its spec is let through: its finalizers must come off.
func (v *poolValidator) ValidateUpdate(ctx context.Context, _, pool *v1alpha1.Pool) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, err
	}
	if pool.DeletionTimestamp != nil || bytes.Equal(specOf(req.OldObject.Raw), specOf(req.Object.Raw)) {
		return nil, nil
	}
	return v.checkTemplate(ctx, pool)
}

// specOf is the spec as the API server writes it. The Go type knows less: it drops
// misspelt fields of the template.
func specOf(object []byte) []byte {
	var raw struct {
		Spec json.RawMessage `json:"spec"`
	}
	_ = json.Unmarshal(object, &raw) // the API server wrote it
	return raw.Spec
}

func (v *poolValidator) checkTemplate(ctx context.Context, pool *v1alpha1.Pool) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, err
	}
	ctx, warnings := collectWarnings(ctx)
	if err := strictTemplate(req.Object.Raw); err != nil {
		return nil, invalid(v1alpha1.KindPool, pool.Name, cause(templateField, err))
	}
	pod, err := podtemplate.ForPool(pool, podtemplate.PoolPodName(pool.Name), podtemplate.PoolRevision(pool, v.trial.executor))
	if err != nil {
		return nil, invalid(v1alpha1.KindPool, pool.Name, causeOf(err, templateField))
	}
	if causes := v.trial.run(ctx, pod, v.trial.executor.InjectsInto(pool), templateField, warnings); len(causes) > 0 {
		return warnings.list(), invalid(v1alpha1.KindPool, pool.Name, causes...)
	}
	return warnings.list(), nil
}

// ValidateDelete refuses what would take the pods of held sandboxes away: foreground
// deletion deletes a pool's pods before its finalizers count, and orphaning takes
// them from the pool.
func (v *poolValidator) ValidateDelete(ctx context.Context, pool *v1alpha1.Pool) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, err
	}
	policy := propagation(req, pool)
	if policy == "" {
		return nil, nil
	}
	// The API server's review has the UID of the pool. Whoever forges one without being
	// allowed to read the pool cannot know that, and is told no names.
	known := &v1alpha1.Pool{}
	err = v.live.Get(ctx, client.ObjectKeyFromObject(pool), known)
	if apierrors.IsNotFound(err) || err == nil && known.UID != pool.UID {
		return nil, nil
	}
	holders, err := v.holders(ctx, pool)
	if err != nil {
		return admission.Warnings{fmt.Sprintf("whether sandboxes of pool %s are held is not known: %v", pool.Name, err)}, nil
	}
	if len(holders) == 0 {
		return nil, nil
	}
	gr := v1alpha1.GroupVersion.WithResource("pools").GroupResource()
	return nil, apierrors.NewForbidden(gr, pool.Name, fmt.Errorf(
		"propagationPolicy %s would take away the sandboxes that are held by %s: delete the pool with propagationPolicy Background, which waits until they have come back, or delete the BatchSandboxes first",
		policy, few(holders)))
}

// propagation returns Foreground or Orphan when the deletion is one of these.
func propagation(req admission.Request, pool *v1alpha1.Pool) metav1.DeletionPropagation {
	options := metav1.DeleteOptions{}
	if req.Operation == admissionv1.Delete && len(req.Options.Raw) > 0 {
		_ = json.Unmarshal(req.Options.Raw, &options) // the API server has read it
	}
	switch {
	case options.PropagationPolicy != nil:
		if *options.PropagationPolicy == metav1.DeletePropagationBackground {
			return ""
		}
		return *options.PropagationPolicy
	case options.OrphanDependents != nil: //nolint:staticcheck // old clients send it
		if ptr.Deref(options.OrphanDependents, false) { //nolint:staticcheck // as above
			return metav1.DeletePropagationOrphan
		}
		return ""
	case slices.Contains(pool.Finalizers, metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	case slices.Contains(pool.Finalizers, metav1.FinalizerOrphanDependents):
		return metav1.DeletePropagationOrphan
	}
	return ""
}

// holders returns the BatchSandboxes that hold pods of the pool, as the API server has them: the
// cache of a standby has none, nor has that of an operator that does not watch the namespace.
func (v *poolValidator) holders(ctx context.Context, pool *v1alpha1.Pool) ([]string, error) {
	all := &v1alpha1.BatchSandboxList{}
	if err := v.live.List(ctx, all, client.InNamespace(pool.Namespace)); err != nil {
		return nil, fmt.Errorf("listing BatchSandboxes: %w", err)
	}
	var names []string
	for i := range all.Items {
		bs := &all.Items[i]
		if bs.Spec.PoolRef == pool.Name && slices.Contains(bs.Finalizers, v1alpha1.FinalizerPoolAllocation) && holds(bs) {
			names = append(names, bs.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// holds errs on the side of the sandboxes: an annotation that cannot be read holds.
func holds(bs *v1alpha1.BatchSandbox) bool {
	for _, key := range []string{v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationAllocRelease} {
		text := bs.Annotations[key]
		if text == "" {
			continue
		}
		var status v1alpha1.AllocRelease
		if json.Unmarshal([]byte(text), &status) != nil || slices.ContainsFunc(status.Pods, func(name string) bool { return name != "" }) {
			return true
		}
	}
	return false
}

// few names at most three.
func few(names []string) string {
	const most = 3
	text := "BatchSandbox " + names[0]
	for i := 1; i < len(names) && i < most; i++ {
		text += ", " + names[i]
	}
	if len(names) > most {
		text += fmt.Sprintf(" and %d more", len(names)-most)
	}
	return text
}

var _ admission.Validator[*v1alpha1.Pool] = &poolValidator{}
