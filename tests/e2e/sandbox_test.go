package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// basicBatchSandbox is what a new user applies first.
const basicBatchSandbox = `
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: BatchSandbox
metadata: {name: basic-batch-sandbox}
spec:
  replicas: 2
  template:
    spec:
      containers:
      - name: sandbox-container
        image: nginx:latest
        ports: [{containerPort: 80}]
`

// row returns the one row of a table of kubectl, by column.
func row(t *testing.T, table string) map[string]string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(table), "\n")
	require.Len(t, lines, 2, "a header and one row: %s", table)
	columns, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	require.Len(t, values, len(columns), "no column is empty: %s", table)
	cells := map[string]string{}
	for i, column := range columns {
		cells[column] = values[i]
	}
	return cells
}

func TestABatchFromATemplateLooksAsPromisedAndAnswers(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	kubectl(t, basicBatchSandbox, "apply", "--namespace", ns, "--filename", "-")
	bs := fromTemplate(ns, "basic-batch-sandbox", 2, nil)
	until(t, bs, ready)

	table := kubectl(t, "", "get", "batchsandbox", bs.Name, "--namespace", ns, "--output", "wide")
	header, _, _ := strings.Cut(table, "\n")
	require.Equal(t, "NAME DESIRED TOTAL ALLOCATED READY TASK_RUNNING TASK_SUCCEED TASK_FAILED TASK_UNKNOWN EXPIRE AGE",
		strings.Join(strings.Fields(header), " "))
	cells := row(t, table)
	for column, want := range map[string]string{
		"NAME": bs.Name, "DESIRED": "2", "TOTAL": "2", "ALLOCATED": "2", "READY": "2", "EXPIRE": "<none>",
	} {
		require.Equal(t, want, cells[column], "column %s of %s", column, table)
	}

	var ips []string
	for shard := range 2 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("basic-batch-sandbox-%d", shard)}}
		require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
		ips = append(ips, `"`+pod.Status.PodIP+`"`)
		require.Equal(t, http.StatusOK, getPage(t, pod.Status.PodIP, "/"))
	}
	endpoints := kubectl(t, "", "get", "batchsandbox", bs.Name, "--namespace", ns,
		"--output", `jsonpath={.metadata.annotations.sandbox\.opensandbox\.io/endpoints}`)
	require.Equal(t, "["+strings.Join(ips, ",")+"]", endpoints)
}

func TestExpireShowsWhenABatchIsDeletedAndThenItIs(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	bs := fromTemplate(ns, "expiring", 1, shell("sleep 3600"))
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	bs.Spec.ExpireTime = ptr.To(metav1.NewTime(end))
	start(t, bs)
	cells := row(t, kubectl(t, "", "get", "bsbx", bs.Name, "--namespace", ns))
	require.Equal(t, end.Format(time.RFC3339), cells["EXPIRE"])
	require.Equal(t, "1", cells["DESIRED"])

	bs.Spec.ExpireTime = ptr.To(metav1.NewTime(time.Now().Add(2 * time.Second)))
	require.NoError(t, updated(t, bs))
	untilGone(t, bs)
	untilGone(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "expiring-0"}})
}

// trouble is a script that ends in the way that a file names.
const trouble = `
while true; do
  if [ -e /tmp/out-of-memory ]; then exec tail /dev/zero; fi
  if [ -e /tmp/crash ]; then exit 3; fi
  sleep 0.2
done`

func troubled() *v1alpha1.PodTemplate {
	template := shell(trouble)
	template.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: memory("24Mi"), Requests: memory("8Mi")}
	return template
}

func TestAContainerThatDiesAfterTheHandOverIsReported(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	startPool(t, ns, troubled(), v1alpha1.CapacitySpec{BufferMin: 2, BufferMax: 2, PoolMax: 4})
	for _, bs := range []*v1alpha1.BatchSandbox{pooled(ns, "pooled", 2), fromTemplate(ns, "basic", 2, troubled())} {
		t.Run(bs.Name, func(t *testing.T) {
			start(t, bs)
			require.Zero(t, bs.Status.Restarted)
			pods := heldBy(t, bs)
			if bs.Spec.PoolRef == "" {
				pods = []string{"basic-0", "basic-1"}
			}
			inSandbox(t, ns, pods[0], "touch", "/tmp/out-of-memory")
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.Restarted == 1 })
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pods[0]}}
			require.NoError(t, api.Get(t.Context(), client.ObjectKeyFromObject(pod), pod))
			ended := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated
			require.NotNil(t, ended)
			require.Equal(t, "OOMKilled", ended.Reason)

			inSandbox(t, ns, pods[1], "touch", "/tmp/crash")
			until(t, bs, func(bs *v1alpha1.BatchSandbox) bool {
				return bs.Status.Restarted == 2 && ready(bs) &&
					hasCondition(v1alpha1.ConditionSandboxesRestarted, v1alpha1.ReasonContainersRestarted)(bs.Status.Conditions)
			})
			untilEvent(t, ns, bs.Name, v1alpha1.ConditionSandboxesRestarted)
		})
	}
}

func TestRestartsBeforeTheHandOverDoNotCount(t *testing.T) {
	t.Parallel()
	ns := newNamespace(t)
	template := shell("if [ ! -e /state/started ]; then touch /state/started; exit 1; fi; sleep 3600")
	template.Spec.Volumes = []corev1.Volume{{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/state"}}
	// The only pod of the pool: it is Ready for the moment of its first life, too.
	startPool(t, ns, template, v1alpha1.CapacitySpec{BufferMin: 1, BufferMax: 1, PoolMin: 1, PoolMax: 1})
	untilPods(t, ns, func(pods []corev1.Pod) bool {
		return len(pods) == 1 && len(pods[0].Status.ContainerStatuses) == 1 &&
			pods[0].Status.ContainerStatuses[0].RestartCount == 1 && pods[0].Status.ContainerStatuses[0].Ready
	})
	bs := pooled(ns, "batch", 1)
	start(t, bs)
	require.Zero(t, bs.Status.Restarted)
	require.Contains(t, bs.Annotations[v1alpha1.AnnotationAllocStatus], `"restarts"`)
}

func TestPodsThatCannotPullTheirImageAreNotMadeOverAndOver(t *testing.T) {
	const watched = 30 * time.Second
	t.Parallel()
	ns := newNamespace(t)
	template := shell("sleep 3600")
	template.Spec.Containers[0].Image = "opensandbox.io/no-such-image:v1"
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "example-pool"}, Spec: v1alpha1.PoolSpec{
		Template: template, CapacitySpec: v1alpha1.CapacitySpec{BufferMin: 2, BufferMax: 2, PoolMin: 2, PoolMax: 6}}}
	begin := time.Now()
	require.NoError(t, api.Create(t.Context(), pool))
	batch, waiting := fromTemplate(ns, "basic", 2, template), pooled(ns, "batch", 1)
	require.NoError(t, api.Create(t.Context(), batch))
	require.NoError(t, api.Create(t.Context(), waiting))

	cannotStart := hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPodsCannotStart)
	until(t, pool, func(p *v1alpha1.Pool) bool { return p.Status.Total >= 3 && cannotStart(p.Status.Conditions) })
	require.Contains(t, dump{pool.Status.Conditions}.String(), "Image", "the kubelet's own reason is shown")
	until(t, batch, func(bs *v1alpha1.BatchSandbox) bool {
		return bs.Status.Phase == v1alpha1.PhaseFailed &&
			hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPodsFailing)(bs.Status.Conditions)
	})
	until(t, waiting, func(bs *v1alpha1.BatchSandbox) bool {
		return hasCondition(v1alpha1.ConditionReady, v1alpha1.ReasonPoolExhausted)(bs.Status.Conditions)
	})

	// Three of the pool, one of them for the batch that waits, and two of the template.
	// After a minute others are made in place of the pool's, and then less and less often.
	const wanted = 5
	seen := map[types.UID]bool{}
	require.Never(t, func() bool {
		maps.Copy(seen, podUIDs(t, ns))
		return len(seen) > wanted+3*int(time.Since(begin)/time.Minute)
	}, watched, time.Second, "pods come and go")
	require.GreaterOrEqual(t, len(seen), wanted)
}
