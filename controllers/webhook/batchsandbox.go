package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	kjson "sigs.k8s.io/json"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// On CREATE only: a hand-out updates the object and must not wait for a webhook, and
// what is checked here is immutable by CEL.
//
// +kubebuilder:webhook:path=/mutate-sandbox-opensandbox-io-v1alpha1-batchsandbox,mutating=true,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=create,versions=v1alpha1,name=mbatchsandbox.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=3,patch=`{"matchConditions": [{"name": "carries-an-annotation-of-the-operator", "expression": "has(object.metadata.annotations) && ['sandbox.opensandbox.io/alloc-status', 'sandbox.opensandbox.io/alloc-release', 'sandbox.opensandbox.io/endpoints', 'sandbox.opensandbox.io/allocator'].exists(key, key in object.metadata.annotations)"}]}`
// +kubebuilder:webhook:path=/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox,mutating=false,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=create,versions=v1alpha1,name=vbatchsandbox.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=10

const (
	// trialsAtOnce bounds the dry runs of one BatchSandbox that run together.
	trialsAtOnce = 8
	// mostTrials bounds the dry runs of one BatchSandbox; the reconciler checks the rest.
	mostTrials = 64
	// trialTime is left for all of them, within the webhook's timeout of 10 s.
	trialTime = 6 * time.Second
)

// ours are annotations that only the operator writes. In a restored backup they speak
// of pods that belong to somebody else by now.
var ours = []string{
	v1alpha1.AnnotationAllocStatus, v1alpha1.AnnotationAllocRelease,
	v1alpha1.AnnotationEndpoints, v1alpha1.AnnotationAllocator,
}

func defaultBatchSandbox(_ context.Context, req admission.Request) admission.Response {
	var bs metav1.PartialObjectMetadata
	if err := json.Unmarshal(req.Object.Raw, &bs); err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	var patch []jsonpatch.Operation
	var warnings []string
	for _, key := range ours {
		if _, there := bs.Annotations[key]; there {
			patch = append(patch, jsonpatch.NewOperation("remove", "/metadata/annotations/"+strings.ReplaceAll(key, "/", "~1"), nil))
			warnings = append(warnings, fmt.Sprintf("metadata.annotations[%s] was removed: only the operator writes it", key))
		}
	}
	if len(patch) == 0 {
		return admission.Allowed("")
	}
	return admission.Patched("", patch...).WithWarnings(warnings...)
}

type batchSandboxValidator struct {
	reader client.Reader
	pods   Pods
	trial  *trial
	clock  clock.PassiveClock
}

// ValidateCreate tries everything that the sandboxes and their tasks are made of.
func (v *batchSandboxValidator) ValidateCreate(ctx context.Context, bs *v1alpha1.BatchSandbox) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, err
	}
	ctx, warnings := collectWarnings(ctx)
	causes := checkTaskPatches(bs)
	if expires := bs.Spec.ExpireTime; expires != nil && !expires.After(v.clock.Now()) {
		warnings.add("spec.expireTime is in the past: the BatchSandbox will be deleted at once")
	}
	if bs.Spec.PoolRef != "" {
		v.checkPool(ctx, bs, warnings)
	} else if err := strictTemplate(req.Object.Raw); err != nil {
		causes = append(causes, cause(metav1.CauseTypeFieldValueInvalid, templateField, err))
	} else {
		causes = append(causes, v.checkShards(ctx, bs, warnings)...)
	}
	if len(causes) > 0 {
		return warnings.list(), invalid(v1alpha1.KindBatchSandbox, bs.Name, causes...)
	}
	return warnings.list(), nil
}

// ValidateUpdate is not asked for.
func (v *batchSandboxValidator) ValidateUpdate(context.Context, *v1alpha1.BatchSandbox, *v1alpha1.BatchSandbox) (admission.Warnings, error) {
	return nil, nil
}

// ValidateDelete is not asked for.
func (v *batchSandboxValidator) ValidateDelete(context.Context, *v1alpha1.BatchSandbox) (admission.Warnings, error) {
	return nil, nil
}

// checkPool only warns: GitOps applies objects in any order.
func (v *batchSandboxValidator) checkPool(ctx context.Context, bs *v1alpha1.BatchSandbox, warnings *warnings) {
	pool := &v1alpha1.Pool{}
	err := v.reader.Get(ctx, client.ObjectKey{Namespace: bs.Namespace, Name: bs.Spec.PoolRef}, pool)
	switch {
	case apierrors.IsNotFound(err):
		warnings.add(fmt.Sprintf("spec.poolRef: there is no Pool %s in namespace %s yet", bs.Spec.PoolRef, bs.Namespace))
	case err == nil && pool.DeletionTimestamp != nil:
		warnings.add(fmt.Sprintf("spec.poolRef: Pool %s is being deleted and lends nothing more", bs.Spec.PoolRef))
	}
}

// checkShards applies every patch, and has the API server try each different pod.
func (v *batchSandboxValidator) checkShards(ctx context.Context, bs *v1alpha1.BatchSandbox, warnings *warnings) []metav1.StatusCause {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	if causes := besideExecutor(bs.Spec.Template, bs.Spec.TaskTemplate != nil); len(causes) > 0 {
		return causes
	}
	var running sync.WaitGroup
	var mu sync.Mutex // guards causes
	var causes []metav1.StatusCause
	slots := make(chan struct{}, trialsAtOnce)
	for i, shard := range differentShards(bs) {
		if ctx.Err() != nil {
			break
		}
		field := templateField
		if int(shard) < len(bs.Spec.ShardPatches) && !empty(bs.Spec.ShardPatches[shard].Raw) {
			field = fmt.Sprintf("spec.shardPatches[%d]", shard)
		}
		pod, err := v.pods.Shard(bs, shard)
		if err != nil {
			return []metav1.StatusCause{cause(metav1.CauseTypeFieldValueInvalid, "", err)}
		}
		if i >= mostTrials {
			continue
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			found := v.trial.run(ctx, pod, field, warnings)
			mu.Lock()
			defer mu.Unlock()
			causes = append(causes, found...)
		})
	}
	running.Wait()
	return causes
}

// differentShards are shards whose pods differ: one past the patches where there is
// such a shard or there are no patches, and one for each different patch.
func differentShards(bs *v1alpha1.BatchSandbox) []int32 {
	var shards []int32
	if patches := int32(len(bs.Spec.ShardPatches)); patches == 0 || patches < bs.DesiredReplicas() { //nolint:gosec // at most 5,000
		shards = append(shards, patches)
	}
	seen := map[string]bool{}
	for i := range bs.Spec.ShardPatches {
		patch := string(bytes.TrimSpace(bs.Spec.ShardPatches[i].Raw))
		if !seen[patch] {
			seen[patch] = true
			shards = append(shards, int32(i)) //nolint:gosec // at most 5,000
		}
	}
	return shards
}

func empty(patch []byte) bool {
	patch = bytes.TrimSpace(patch)
	return len(patch) == 0 || bytes.Equal(patch, []byte("null")) || bytes.Equal(patch, []byte("{}"))
}

// checkTaskPatches applies every different patch to the task template.
func checkTaskPatches(bs *v1alpha1.BatchSandbox) []metav1.StatusCause {
	if bs.Spec.TaskTemplate == nil {
		return nil
	}
	original, err := json.Marshal(bs.Spec.TaskTemplate)
	if err != nil {
		return []metav1.StatusCause{cause(metav1.CauseTypeFieldValueInvalid, "spec.taskTemplate", err)}
	}
	seen := map[string]bool{}
	for i := range bs.Spec.ShardTaskPatches {
		patch := bs.Spec.ShardTaskPatches[i].Raw
		if empty(patch) || seen[string(patch)] {
			continue
		}
		seen[string(patch)] = true
		if err := tryTaskPatch(original, patch); err != nil {
			field := fmt.Sprintf("spec.shardTaskPatches[%d]", i)
			return []metav1.StatusCause{cause(metav1.CauseTypeFieldValueInvalid, field, err)}
		}
	}
	if len(bs.Spec.ShardTaskPatches) < int(bs.DesiredReplicas()) && noCommand(bs.Spec.TaskTemplate) {
		err := errors.New("must not both be empty: there is nothing to run")
		return []metav1.StatusCause{cause(metav1.CauseTypeFieldValueRequired, "spec.taskTemplate.spec.process.command and args", err)}
	}
	return nil
}

func tryTaskPatch(original, patch []byte) error {
	merged, err := strategicpatch.StrategicMergePatch(original, patch, v1alpha1.TaskTemplate{})
	if err != nil {
		return fmt.Errorf("not a strategic merge patch for a task template: %w", err)
	}
	task := &v1alpha1.TaskTemplate{}
	unknown, err := kjson.UnmarshalStrict(merged, task)
	if err == nil {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return fmt.Errorf("the patched task template is not a task template: %w", err)
	}
	if noCommand(task) {
		return errors.New("the patched task template has neither command nor args: there is nothing to run")
	}
	return nil
}

func noCommand(task *v1alpha1.TaskTemplate) bool {
	return len(task.Spec.Process.Command)+len(task.Spec.Process.Args) == 0
}

var _ admission.Validator[*v1alpha1.BatchSandbox] = &batchSandboxValidator{}
