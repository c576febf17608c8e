package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

func object(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	return raw
}

func request(raw []byte) admission.Request {
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: raw}}}
}

func TestDefaultPool(t *testing.T) {
	cases := []struct{ name, object, want string }{
		{"nothing is said", `spec: {template: {}}`, `[{"op":"add","path":"/spec/updateStrategy","value":{"maxUnavailable":"25%"}},{"op":"add","path":"/spec/recycleStrategy","value":{"type":"Delete"}}]`},
		{"an empty strategy", `spec: {updateStrategy: {}, recycleStrategy: {type: Noop}}`, `[{"op":"add","path":"/spec/updateStrategy/maxUnavailable","value":"25%"}]`},
		{"strategies with other fields keep them", `spec: {updateStrategy: {later: 1}, recycleStrategy: {later: 1}}`,
			`[{"op":"add","path":"/spec/updateStrategy/maxUnavailable","value":"25%"},{"op":"add","path":"/spec/recycleStrategy/type","value":"Delete"}]`},
		{"a paused update stays paused", `spec: {updateStrategy: {maxUnavailable: 0}, recycleStrategy: {type: Noop}}`, `null`},
		{"there is no spec", `{}`, `null`},
		{"a spec of null", `spec: null`, `null`},
		{"an object that is being deleted is left alone", `{metadata: {deletionTimestamp: "2030-01-01T00:00:00Z"}, spec: {}}`, `null`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			response := defaultPool(t.Context(), request(object(t, c.object)))
			require.True(t, response.Allowed, response.Result)
			got, err := json.Marshal(response.Patches)
			require.NoError(t, err)
			assert.JSONEq(t, c.want, string(got))
		})
	}
}

func TestDefaultBatchSandboxTakesTheOperatorsAnnotationsAway(t *testing.T) {
	response := defaultBatchSandbox(t.Context(), request(object(t, `
metadata: {annotations: {mine: kept, sandbox.opensandbox.io/alloc-status: "x", sandbox.opensandbox.io/endpoints: "[]"}}`)))
	require.True(t, response.Allowed)
	got, err := json.Marshal(response.Patches)
	require.NoError(t, err)
	assert.JSONEq(t, `[{"op":"remove","path":"/metadata/annotations/sandbox.opensandbox.io~1alloc-status"},{"op":"remove","path":"/metadata/annotations/sandbox.opensandbox.io~1endpoints"}]`, string(got))
	assert.Len(t, response.Warnings, 2)

	for _, text := range []string{`metadata: {annotations: {mine: kept}}`, `metadata: {annotations: null}`, `metadata: {}`, `metadata: null`, `{}`} {
		response = defaultBatchSandbox(t.Context(), request(object(t, text)))
		assert.True(t, response.Allowed, text)
		assert.Empty(t, response.Patches, text)
	}
}

func TestPropagation(t *testing.T) {
	cases := []struct {
		name, options string
		finalizers    []string
		want          metav1.DeletionPropagation
	}{
		{"the default", `{}`, nil, ""},
		{"background", `{"propagationPolicy":"Background"}`, []string{metav1.FinalizerDeleteDependents}, ""},
		{"foreground", `{"propagationPolicy":"Foreground"}`, nil, metav1.DeletePropagationForeground},
		{"orphan", `{"propagationPolicy":"Orphan"}`, nil, metav1.DeletePropagationOrphan},
		{"orphan as old clients say it", `{"orphanDependents":true}`, nil, metav1.DeletePropagationOrphan},
		{"background as old clients say it", `{"orphanDependents":false}`, nil, ""},
		{"a finalizer that was put on before", `{}`, []string{metav1.FinalizerDeleteDependents}, metav1.DeletePropagationForeground},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{Operation: admissionv1.Delete, Options: runtime.RawExtension{Raw: []byte(c.options)}}}
			assert.Equal(t, c.want, propagation(req, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Finalizers: c.finalizers}}))
		})
	}
}

func TestHolds(t *testing.T) {
	cases := []struct {
		name, key, value string
		want             bool
	}{
		{"a held pod", v1alpha1.AnnotationAllocStatus, `{"pods":["","a"]}`, true},
		{"a pod that is not clean yet", v1alpha1.AnnotationAllocRelease, `{"pods":["a"]}`, true},
		{"empty positions only", v1alpha1.AnnotationAllocStatus, `{"pods":[""]}`, false},
		{"an empty list", v1alpha1.AnnotationAllocStatus, `{"pods":[]}`, false},
		{"something that cannot be read", v1alpha1.AnnotationAllocStatus, `{`, true},
		{"another annotation", "other", `{"pods":["a"]}`, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, c.want, holds(&v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{c.key: c.value}}}))
		})
	}
}

// batchValidator tries pods with a function.
func batchValidator(create func(*corev1.Pod) error) *batchSandboxValidator {
	return &batchSandboxValidator{
		clock: clock.RealClock{},
		trial: &trial{
			create:   func(_ context.Context, pod *corev1.Pod) error { return create(pod) },
			executor: &podtemplate.Executor{Image: "executor"},
		},
	}
}

func validate(t *testing.T, v *batchSandboxValidator, text string) ([]string, error) {
	t.Helper()
	raw := object(t, text)
	bs := &v1alpha1.BatchSandbox{}
	require.NoError(t, json.Unmarshal(raw, bs))
	return v.ValidateCreate(admission.NewContextWithRequest(t.Context(), request(raw)), bs)
}

const pod = `{containers: [{name: main, image: nginx}]}`

func TestValidateBatchSandbox(t *testing.T) {
	fine := func(*corev1.Pod) error { return nil }
	cases := []struct {
		name, spec string
		create     func(*corev1.Pod) error
		want       string // in the error; empty: none
		warning    string
	}{
		{"a good template", `{template: {spec: ` + pod + `}}`, fine, "", ""},
		{"a misspelt field of the template", `{template: {spec: {contaners: []}}}`, fine, `spec.template: not a pod template: unknown field "spec.contaners"`, ""},
		{"a misspelt field of a patch", `{replicas: 2, template: {spec: ` + pod + `}, shardPatches: [{}, {spec: {hostnam: x}}]}`, fine, `spec.shardPatches[1]: `, ""},
		{"the API server's own words", `{template: {spec: ` + pod + `}}`, func(*corev1.Pod) error {
			return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "x", field.ErrorList{field.Required(field.NewPath("spec", "containers").Index(0).Child("image"), "")})
		}, `spec.template.spec.containers[0].image: Required value`, ""},
		{"only the patched pod is bad", `{replicas: 2, template: {spec: ` + pod + `}, shardPatches: [{spec: {hostname: BAD}}]}`, func(pod *corev1.Pod) error {
			if pod.Spec.Hostname == "" {
				return nil
			}
			return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "x", field.ErrorList{field.Invalid(field.NewPath("spec", "hostname"), "BAD", "no")})
		}, `spec.shardPatches[0].spec.hostname: Invalid value`, ""},
		{"a template that only its patches complete", `{replicas: 1, template: {spec: {containers: [{name: main}]}}, shardPatches: [{spec: ` + pod + `}]}`, func(pod *corev1.Pod) error {
			if pod.Spec.Containers[0].Image == "" {
				return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "x", nil)
			}
			return nil
		}, "", ""},
		{"a full quota is a warning", `{template: {spec: ` + pod + `}}`, func(*corev1.Pod) error {
			return apierrors.NewForbidden(corev1.Resource("pods"), "x", errors.New("exceeded quota"))
		}, "", "exceeded quota"},
		{"an API server that does not answer", `{template: {spec: ` + pod + `}}`, func(*corev1.Pod) error { return errors.New("broken") }, "", "broken"},
		{"an expiry in the past", `{expireTime: "2001-01-01T00:00:00Z", template: {spec: ` + pod + `}}`, fine, "", "spec.expireTime is in the past"},
		{"a task without a command", `{template: {spec: ` + pod + `}, taskTemplate: {spec: {process: {}}}}`, fine, "spec.taskTemplate: spec.process.command: must not be empty", ""},
		{"a task with the command in each patch", `{template: {spec: ` + pod + `}, taskTemplate: {spec: {process: {}}}, shardTaskPatches: [{spec: {process: {command: [a]}}}]}`, fine, "", ""},
		{"a misspelt field of a task patch", `{template: {spec: ` + pod + `}, taskTemplate: {spec: {process: {command: [a]}}}, shardTaskPatches: [{spec: {prozess: {}}}]}`, fine, `spec.shardTaskPatches[0]: `, ""},
		{"a privileged container beside an executor", `{taskTemplate: {spec: {process: {command: [a]}}}, template: {spec: {containers: [{name: main, image: a, securityContext: {privileged: true}}]}}}`, fine, "", "spec.template.spec.containers[0].securityContext.privileged: container main could forge"},
		{"a privileged container without an executor", `{template: {spec: {containers: [{name: main, image: a, securityContext: {privileged: true}}]}}}`, fine, "", ""},
		{"a capability beside a hand-written executor", `{template: {spec: {containers: [{name: main, image: a, securityContext: {capabilities: {add: [CAP_SYS_ADMIN]}}}, {name: task-executor}]}}}`, fine, "", "spec.template.spec.containers[0].securityContext.capabilities.add: with SYS_ADMIN"},
		{"a hook that is no command beside an executor", `{taskTemplate: {spec: {process: {command: [a]}}}, template: {spec: {containers: [{name: main, image: a, lifecycle: {postStart: {sleep: {seconds: 1}}}}]}}}`, fine, "spec.template.spec.containers[0].lifecycle.postStart", ""},
		{"an executor on the host's network", `{template: {spec: {hostNetwork: true, containers: [{name: main, image: a}, {name: task-executor, securityContext: {privileged: true}}]}}}`, fine, "spec.template.spec.hostNetwork", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			warnings, err := validate(t, batchValidator(c.create), `{metadata: {name: batch}, spec: `+c.spec+`}`)
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
				assert.Equal(t, int32(http.StatusUnprocessableEntity), err.(apierrors.APIStatus).Status().Code)
			}
			if c.warning != "" {
				require.Len(t, warnings, 1)
				assert.Contains(t, warnings[0], c.warning)
			}
		})
	}
}

func TestEqualPatchesAreTriedOnce(t *testing.T) {
	bs := &v1alpha1.BatchSandbox{Spec: v1alpha1.BatchSandboxSpec{
		Replicas: ptr.To(int32(5000)), Template: &v1alpha1.PodTemplate{},
		TaskTemplate: nil, ShardPatches: make([]v1alpha1.Patch, 4000),
	}}
	for i := range bs.Spec.ShardPatches {
		bs.Spec.ShardPatches[i].Raw = []byte(`{"spec":{"hostname":"a"}}`)
	}
	assert.Equal(t, []int32{4000, 0}, differentShards(bs, bs.Spec.ShardPatches))
	bs.Spec.Replicas = ptr.To(int32(4000))
	assert.Equal(t, []int32{0}, differentShards(bs, bs.Spec.ShardPatches))
}

// hostile is a batch with a big template and as many patches as there can be. The patch at
// shard wrong does not apply.
func hostile(t *testing.T, template, patches, patch, wrong string, at int) string {
	t.Helper()
	big := strings.Repeat("x", 380_000)
	all := make([]string, v1alpha1.MaxReplicas)
	for i := range all {
		all[i] = fmt.Sprintf(patch, i)
	}
	all[at] = wrong
	return `{"metadata":{"name":"a"},"spec":{"replicas":5000,` + fmt.Sprintf(template, big) + `,"` + patches + `":[` + strings.Join(all, ",") + `]}}`
}

// What is checked is bounded by its cost: without the bound, each of these takes half a
// minute of a processor.
func TestManyPatchesOfABigTemplate(t *testing.T) {
	cases := []struct{ name, template, patches, patch, wrong string }{
		{"of tasks", `"template":{"spec":{"containers":[{"name":"main","image":"a"}]}},"taskTemplate":{"spec":{"process":{"command":["a"],"workingDir":"/%s"}}}`, "shardTaskPatches",
			`{"spec":{"process":{"args":["%d"]}}}`, `{"spec":{"prozess":{}}}`},
		{"of pods", `"template":{"metadata":{"annotations":{"a":"%s"}},"spec":{"containers":[{"name":"main","image":"a"}]}}`, "shardPatches",
			`{"spec":{"hostname":"a%d"}}`, `{"spec":{"hostnam":"a"}}`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // no time passes, and so the bound of the cost alone ends it
				v := batchValidator(func(*corev1.Pod) error { return nil })
				warnings, err := validate(t, v, hostile(t, c.template, c.patches, c.patch, c.wrong, v1alpha1.MaxReplicas-1))
				require.NoError(t, err, "the reconciler will tell")
				require.Contains(t, strings.Join(warnings, "\n"), "spec."+c.patches+": only the first ")
				_, err = validate(t, v, hostile(t, c.template, c.patches, c.patch, c.wrong, 10))
				require.ErrorContains(t, err, "spec."+c.patches+"[10]")
			})
		})
	}
}

func TestPatchesThatNobodyWaitsForAreNotApplied(t *testing.T) {
	raw := object(t, `{spec: {poolRef: a, taskTemplate: {spec: {process: {command: [a]}}}, shardTaskPatches: [{spec: {prozess: {}}}]}}`)
	bs := &v1alpha1.BatchSandbox{}
	require.NoError(t, json.Unmarshal(raw, bs))
	ctx, cancel := context.WithCancel(t.Context())
	require.NotEmpty(t, checkTasks(ctx, bs, &warnings{}))
	cancel()
	require.Empty(t, checkTasks(ctx, bs, &warnings{}))
}

func TestAffordablePatches(t *testing.T) {
	list := func(n int) string {
		return `{"a":[` + strings.TrimSuffix(strings.Repeat(`{"name":"b"},`, n), ",") + `]}`
	}
	cases := []struct {
		name     string
		template string
		patch    string
		want     int
	}{
		{"all of an ordinary template", `{"a":"` + strings.Repeat("x", 2000) + `"}`, `{"spec":{"hostname":"a"}}`, 5000},
		{"few of a big one", `{"a":"` + strings.Repeat("x", 380_000) + `"}`, `{"spec":{"hostname":"a"}}`, 88},
		{"not one that searches long lists for long lists", list(10_000), list(10_000), 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			patches, shards := make([]v1alpha1.Patch, v1alpha1.MaxReplicas), make([]int32, v1alpha1.MaxReplicas)
			for i := range patches {
				patches[i].Raw, shards[i] = []byte(c.patch), int32(i)
			}
			said := &warnings{}
			require.Equal(t, c.want, len(affordable(json.RawMessage(c.template), patches, shards, "spec.shardPatches", said))) //nolint:testifylint // it would print them all
			require.Equal(t, c.want == len(shards), len(said.list()) == 0)
		})
	}
}

func TestTrialsEndInTime(t *testing.T) {
	var tries atomic.Int32
	v := batchValidator(nil)
	v.trial.create = func(ctx context.Context, _ *corev1.Pod) error {
		tries.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	raw := object(t, `{spec: {template: {spec: `+pod+`}}}`)
	bs := &v1alpha1.BatchSandbox{}
	require.NoError(t, json.Unmarshal(raw, bs))
	ctx, cancel := context.WithTimeout(admission.NewContextWithRequest(t.Context(), request(raw)), 50*time.Millisecond)
	defer cancel()
	_, err := v.ValidateCreate(ctx, bs)
	require.NoError(t, err, "the reconciler will tell")
	assert.Equal(t, int32(1), tries.Load())
}
