package podtemplate

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

func template(t *testing.T, text string) *v1alpha1.PodTemplate {
	t.Helper()
	result := &v1alpha1.PodTemplate{}
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &result.PodTemplateSpec))
	return result
}

const nginx = `
metadata:
  labels: {app: web, sandbox.opensandbox.io/pool-name: forged, app.kubernetes.io/managed-by: helm, pool.opensandbox.io/evict: ""}
  annotations: {note: kept}
spec:
  nodeSelector: {zone: a}
  containers:
  - name: main
    image: nginx:1
    env: [{name: A, value: "1"}]
  - name: side
    image: side:1
`

func TestForPool(t *testing.T) {
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: "warm", Namespace: "ns", UID: "pool-uid"},
		Spec:       v1alpha1.PoolSpec{Template: template(t, nginx)},
	}
	before := pool.DeepCopy()

	pod, err := ForPool(pool, "warm-x", "rev")

	require.NoError(t, err)
	assert.Equal(t, "warm-x", pod.Name)
	assert.Equal(t, "ns", pod.Namespace)
	assert.Equal(t, map[string]string{
		"app":                      "web",
		v1alpha1.LabelManagedBy:    v1alpha1.ManagedBy,
		v1alpha1.LabelPoolName:     "warm",
		v1alpha1.LabelPoolRevision: "rev",
	}, pod.Labels, "the operator's labels win and the eviction label is dropped")
	assert.Equal(t, map[string]string{"note": "kept"}, pod.Annotations)
	assert.Equal(t, pool.Spec.Template.Spec, pod.Spec)
	yes := true
	assert.Equal(t, []metav1.OwnerReference{{
		APIVersion: "sandbox.opensandbox.io/v1alpha1", Kind: "Pool", Name: "warm", UID: "pool-uid",
		Controller: &yes, BlockOwnerDeletion: &yes,
	}}, pod.OwnerReferences)

	pod.Spec.Containers[0].Image = "changed"
	pod.Annotations["note"] = "changed"
	assert.Equal(t, before, pool, "the Pool shares nothing with its pod")
}

func TestForPoolWithAnEmptyTemplate(t *testing.T) {
	pod, err := ForPool(&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "warm"}}, "warm-x", "rev")
	require.NoError(t, err)
	assert.Len(t, pod.Labels, 3)
}

func TestATemplateOfWrongTypesMakesNoPod(t *testing.T) {
	malformed := &v1alpha1.PodTemplate{Malformed: []byte(`{"spec":{"containers":"nginx"}}`)}
	_, err := ForPool(&v1alpha1.Pool{Spec: v1alpha1.PoolSpec{Template: malformed}}, "warm-x", "rev")
	require.ErrorContains(t, err, "spec.template")
	bs := batchSandbox(t, `{"spec":{"containers":[{"name":"main","image":"a"}]}}`)
	bs.Spec.Template = malformed
	for shard := range int32(2) { // with a patch and without
		_, err = ForShard(bs, shard, "x")
		require.ErrorContains(t, err, "spec.template")
	}
	assert.NotEqual(t, Revision(malformed), Revision(&v1alpha1.PodTemplate{Malformed: []byte(`{"spec":{"containers":"busybox"}}`)}))
}

func batchSandbox(t *testing.T, patches ...string) *v1alpha1.BatchSandbox {
	t.Helper()
	bs := &v1alpha1.BatchSandbox{
		ObjectMeta: metav1.ObjectMeta{Name: "batch", Namespace: "ns", UID: types.UID("bs-uid")},
		Spec:       v1alpha1.BatchSandboxSpec{Template: template(t, nginx)},
	}
	for _, patch := range patches {
		var raw []byte
		if patch != "" {
			var err error
			raw, err = yaml.YAMLToJSON([]byte(patch))
			require.NoError(t, err)
		}
		bs.Spec.ShardPatches = append(bs.Spec.ShardPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: raw}})
	}
	return bs
}

func TestForShardAppliesThePatchOfTheShard(t *testing.T) {
	cases := []struct {
		name  string
		patch string
		check func(*testing.T, *corev1.Pod)
	}{
		{"an empty patch leaves the template as it is", "", func(t *testing.T, pod *corev1.Pod) {
			assert.Equal(t, template(t, nginx).Spec, pod.Spec)
		}},
		{"a null patch leaves the template as it is", "null", func(t *testing.T, pod *corev1.Pod) {
			assert.Equal(t, template(t, nginx).Spec, pod.Spec)
		}},
		{"containers and their env are merged by name",
			`spec: {containers: [{name: main, env: [{name: B, value: "2"}]}]}`,
			func(t *testing.T, pod *corev1.Pod) {
				require.Len(t, pod.Spec.Containers, 2)
				assert.Equal(t, "nginx:1", pod.Spec.Containers[0].Image)
				assert.ElementsMatch(t, []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}, pod.Spec.Containers[0].Env)
			}},
		{"a directive deletes a container",
			`spec: {containers: [{name: side, $patch: delete}]}`,
			func(t *testing.T, pod *corev1.Pod) {
				require.Len(t, pod.Spec.Containers, 1)
				assert.Equal(t, "main", pod.Spec.Containers[0].Name)
			}},
		{"null removes a field",
			`spec: {nodeSelector: null}`,
			func(t *testing.T, pod *corev1.Pod) { assert.Empty(t, pod.Spec.NodeSelector) }},
		{"reserved labels of the patch are overridden",
			`metadata: {labels: {app.kubernetes.io/managed-by: me, batch-sandbox.sandbox.opensandbox.io/pod-index: "9", extra: "yes"}}`,
			func(t *testing.T, pod *corev1.Pod) {
				assert.Equal(t, v1alpha1.ManagedBy, pod.Labels[v1alpha1.LabelManagedBy])
				assert.Equal(t, "1", pod.Labels[v1alpha1.LabelBatchSandboxPodIndex])
				assert.Equal(t, "batch", pod.Labels[v1alpha1.LabelBatchSandboxName])
				assert.Equal(t, "yes", pod.Labels["extra"])
			}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bs := batchSandbox(t, `spec: {hostname: other}`, c.patch)
			before := bs.DeepCopy()
			pod, err := ForShard(bs, 1, "batch-1")
			require.NoError(t, err)
			assert.Equal(t, "batch-1", pod.Name)
			assert.Equal(t, types.UID("bs-uid"), metav1.GetControllerOf(pod).UID)
			assert.True(t, *metav1.GetControllerOf(pod).BlockOwnerDeletion)
			c.check(t, pod)
			assert.Equal(t, before, bs, "the BatchSandbox is left alone")
		})
	}
}

func TestForShardPastTheEndOfThePatches(t *testing.T) {
	pod, err := ForShard(batchSandbox(t, `spec: {hostname: other}`), 1, "batch-1")
	require.NoError(t, err)
	assert.Empty(t, pod.Spec.Hostname)
	assert.Equal(t, "1", pod.Labels[v1alpha1.LabelBatchSandboxPodIndex])
}

func TestForShardNamesThePatchThatDoesNotApply(t *testing.T) {
	cases := []struct{ name, patch, want string }{
		{"a misspelt field", `spec: {contaners: []}`, `unknown field "spec.contaners"`},
		{"a value of another type", `spec: {hostname: {a: b}}`, "not a pod template"},
		{"a list element without its merge key", `spec: {containers: [{image: x}]}`, "not a strategic merge patch"},
		{"a patch that is no object", `[1]`, "not a strategic merge patch"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := ForShard(batchSandbox(t, "", "", c.patch), 2, "batch-2")
			require.Error(t, err)
			assert.True(t, strings.HasPrefix(err.Error(), "spec.shardPatches[2]: "), err)
			assert.Contains(t, err.Error(), c.want)
		})
	}
}

func TestRevision(t *testing.T) {
	base := Revision(template(t, nginx))
	assert.Regexp(t, `^[a-z0-9]{1,10}$`, base, "fit for a label")
	assert.Equal(t, base, Revision(template(t, nginx)), "stable")

	// Written down: if it changes, every pool rolls its pods when the operator is upgraded.
	assert.Equal(t, "7d46689fb7", Revision(template(t, `spec: {containers: [{name: a, image: b}]}`)))

	cases := []struct{ name, text string }{
		{"an image", strings.Replace(nginx, "nginx:1", "nginx:2", 1)},
		{"a label", strings.Replace(nginx, "app: web", "app: other", 1)},
		{"an annotation", strings.Replace(nginx, "note: kept", "note: changed", 1)},
		{"a large number by one", nginx + "  activeDeadlineSeconds: 9007199254740993"},
		{"a large number", nginx + "  activeDeadlineSeconds: 9007199254740992"},
		{"an empty object that means something", nginx + "  affinity: {}"},
	}
	seen := map[string]string{base: "nothing"}
	for _, c := range cases {
		revision := Revision(template(t, c.text))
		assert.NotContains(t, seen, revision, "changing %s is a new revision", c.name)
		seen[revision] = c.name
	}
}

func TestNames(t *testing.T) {
	cases := []struct {
		name, got, want string
	}{
		{"a pool pod has a random suffix", PoolPodName("warm"), `^warm-[a-z0-9]{6}$`},
		{"the first pod of a shard has a fixed name", ShardPodName("batch", 4999, true), `^batch-4999$`},
		{"a later one has a suffix", ShardPodName("batch", 7, false), `^batch-7-[a-z0-9]{6}$`},
		{"a dotted name stays", PoolPodName("a.b"), `^a\.b-[a-z0-9]{6}$`},
		{"a long name is cut", PoolPodName(strings.Repeat("a", 300)), `^a{246}-[a-z0-9]{6}$`},
		{"a long name is not cut behind a dot", PoolPodName(strings.Repeat("a", 245) + "." + strings.Repeat("b", 50)), `^a{245}-[a-z0-9]{6}$`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			assert.Regexp(t, c.want, c.got)
			assert.Empty(t, validation.IsDNS1123Subdomain(c.got))
		})
	}
	first, second := PoolPodName("warm"), PoolPodName("warm")
	assert.NotEqual(t, first, second)
}
