package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podtemplate"
	"github.com/opensandbox/operator/controllers/shardtask"
)

// On CREATE only: a hand-out updates the object and must not wait for a webhook, and
// what is checked here is immutable by CEL. A BatchSandbox that only takes sandboxes from a
// pool is not checked at all where there are matchConditions: CEL has checked what it says.
//
// +kubebuilder:webhook:path=/mutate-sandbox-opensandbox-io-v1alpha1-batchsandbox,mutating=true,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=create,versions=v1alpha1,name=mbatchsandbox.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=3,patch=`{"matchConditions": [{"name": "carries-an-annotation-of-the-operator", "expression": "has(object.metadata.annotations) && ['sandbox.opensandbox.io/alloc-status', 'sandbox.opensandbox.io/alloc-release', 'sandbox.opensandbox.io/endpoints', 'sandbox.opensandbox.io/allocator'].exists(key, key in object.metadata.annotations)"}]}`
// +kubebuilder:webhook:path=/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox,mutating=false,failurePolicy=ignore,sideEffects=None,groups=sandbox.opensandbox.io,resources=batchsandboxes,verbs=create,versions=v1alpha1,name=vbatchsandbox.sandbox.opensandbox.io,admissionReviewVersions=v1,timeoutSeconds=10,patch=`{"matchConditions": [{"name": "is-more-than-a-number-of-sandboxes-of-a-pool", "expression": "!has(object.spec.poolRef) || has(object.spec.template) || has(object.spec.taskTemplate) || has(object.spec.expireTime)"}]}`

const (
	// trialsAtOnce bounds the dry runs of one BatchSandbox that run together.
	trialsAtOnce = 8
	// mostTrials bounds the dry runs of one BatchSandbox; the reconciler checks the rest.
	mostTrials = 64
	// mostPatching bounds what the patches of one list may cost, in bytes of JSON that are
	// read and written: about half a second. A patch of 100 bytes can be applied to a
	// template of 2 KiB 5,000 times, and to one of 380 KiB 80 times.
	mostPatching = 32 << 20
	// bytesAnElement is for how many bytes to count the search for one element among
	// the others.
	bytesAnElement = 4
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
	cache, live client.Reader
	trial       *trial
	clock       clock.PassiveClock
}

// ValidateCreate tries everything that the sandboxes and their tasks are made of.
func (v *batchSandboxValidator) ValidateCreate(ctx context.Context, bs *v1alpha1.BatchSandbox) (admission.Warnings, error) {
	req, err := admission.RequestFromContext(ctx)
	if err != nil {
		return nil, err
	}
	ctx, warnings := collectWarnings(ctx)
	causes := checkTasks(ctx, bs, warnings)
	if expires := bs.Spec.ExpireTime; expires != nil && !expires.After(v.clock.Now()) {
		warnings.add("spec.expireTime is in the past: the BatchSandbox will be deleted at once")
	}
	if bs.Spec.PoolRef == v1alpha1.AnyPool {
		// What is asked for makes no pod: it need not be a whole template, only a readable one.
		if err := strictTemplate(req.Object.Raw); err != nil {
			causes = append(causes, cause(templateField, err))
		}
	} else if bs.Spec.PoolRef != "" {
		v.checkPool(ctx, bs, warnings)
	} else if err := strictTemplate(req.Object.Raw); err != nil {
		causes = append(causes, cause(templateField, err))
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
	pool, key := &v1alpha1.Pool{}, client.ObjectKey{Namespace: bs.Namespace, Name: bs.Spec.PoolRef}
	err := v.cache.Get(ctx, key, pool, client.UnsafeDisableDeepCopy)
	if err != nil { // it may have been applied a moment ago, or another operator watches the namespace
		err = v.live.Get(ctx, key, pool)
	}
	switch {
	case apierrors.IsNotFound(err):
		warnings.add(fmt.Sprintf("spec.poolRef: there is no Pool %s in namespace %s yet", bs.Spec.PoolRef, bs.Namespace))
	case err == nil && pool.DeletionTimestamp != nil:
		warnings.add(fmt.Sprintf("spec.poolRef: Pool %s is being deleted and hands out nothing more", bs.Spec.PoolRef))
	}
}

// checkShards applies every patch, and has the API server try each different pod.
func (v *batchSandboxValidator) checkShards(ctx context.Context, bs *v1alpha1.BatchSandbox, warnings *warnings) []metav1.StatusCause {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	var running sync.WaitGroup
	var mu sync.Mutex // guards causes
	var causes []metav1.StatusCause
	slots := make(chan struct{}, trialsAtOnce)
	for i, shard := range affordable(bs.Spec.Template, bs.Spec.ShardPatches, differentShards(bs, bs.Spec.ShardPatches), "spec.shardPatches", warnings) {
		if ctx.Err() != nil {
			break
		}
		field := templateField
		if int(shard) < len(bs.Spec.ShardPatches) && !empty(bs.Spec.ShardPatches[shard].Raw) {
			field = fmt.Sprintf("spec.shardPatches[%d]", shard)
		}
		pod, err := podtemplate.ForShard(bs, shard, podtemplate.ShardPodName(bs.Name, shard, false))
		if err != nil {
			return []metav1.StatusCause{causeOf(err, field)}
		}
		if i >= mostTrials {
			continue
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			found := v.trial.run(ctx, pod, podtemplate.ShardInjects(bs), field, warnings)
			mu.Lock()
			defer mu.Unlock()
			causes = append(causes, found...)
		})
	}
	running.Wait()
	return causes
}

// differentShards are shards that the patches tell apart: one past the patches where
// there is such a shard or there are no patches, and one for each different patch.
func differentShards(bs *v1alpha1.BatchSandbox, patches []v1alpha1.Patch) []int32 {
	var shards []int32
	if n := int32(len(patches)); n == 0 || n < bs.DesiredReplicas() { //nolint:gosec // at most 5,000
		shards = append(shards, n)
	}
	seen := map[string]bool{}
	for i := range patches {
		patch := string(bytes.TrimSpace(patches[i].Raw))
		if !seen[patch] {
			seen[patch] = true
			shards = append(shards, int32(i))
		}
	}
	return shards
}

func empty(patch []byte) bool {
	patch = bytes.TrimSpace(patch)
	return len(patch) == 0 || bytes.Equal(patch, []byte("null")) || bytes.Equal(patch, []byte("{}"))
}

// checkTasks makes the different tasks.
func checkTasks(ctx context.Context, bs *v1alpha1.BatchSandbox, warnings *warnings) []metav1.StatusCause {
	if bs.Spec.TaskTemplate == nil {
		return nil
	}
	for _, shard := range affordable(bs.Spec.TaskTemplate, bs.Spec.ShardTaskPatches, differentShards(bs, bs.Spec.ShardTaskPatches), "spec.shardTaskPatches", warnings) {
		if ctx.Err() != nil {
			return nil // nobody waits for the answer
		}
		if _, err := shardtask.ForShard(bs, shard, nil); err != nil {
			return []metav1.StatusCause{causeOf(err, "spec.taskTemplate")}
		}
	}
	return nil
}

// affordable are the first of the shards whose patches together cost no more than
// mostPatching; the reconcilers check the rest. Applying a patch reads and writes the whole
// template, and looks for each element of the patch among those of the template.
func affordable(template any, patches []v1alpha1.Patch, shards []int32, field string, warnings *warnings) []int32 {
	original, err := json.Marshal(template)
	if err != nil {
		return shards // applying the first patch says so
	}
	elements, spent := values(original), 0
	for i, shard := range shards {
		if int(shard) >= len(patches) {
			continue // the template as it is
		}
		patch := patches[shard].Raw
		added := values(patch)
		spent += len(original) + len(patch) + bytesAnElement*added*(elements+added)
		if spent > mostPatching {
			warnings.add(fmt.Sprintf("%s: only the first %d different patches were checked: the operator checks the rest when it comes to their sandboxes", field, i))
			return shards[:i]
		}
	}
	return shards
}

var _ admission.Validator[*v1alpha1.BatchSandbox] = &batchSandboxValidator{}
