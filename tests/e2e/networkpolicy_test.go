package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// chattyPool is of sandboxes that listen on the ports around the executor's, too, and
// on its number in UDP.
const chattyPool = `
apiVersion: sandbox.opensandbox.io/v1alpha1
kind: Pool
metadata: {name: chatty}
spec:
  taskExecutor: {enabled: true}
  template:
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: sandbox-container
        image: nginx:latest
        ports: [{containerPort: 80}]
      - name: neighbours
        image: busybox:latest
        command: [sh, -c, "httpd -p 5757 && exec httpd -f -p 5759"]
      - name: udp
        image: ubuntu:latest
        command: [perl, -MIO::Socket::INET, -e, '$s = IO::Socket::INET->new(LocalPort => 5758, Proto => "udp"); $s->send("UDP 200\n") while $s->recv($_, 64)']
  capacitySpec: {bufferMin: 2, bufferMax: 2, poolMin: 2, poolMax: 2}
`

// ports are what listens on a pod, with the status that a stranger gets from each.
// Nothing is what came back from a port that is closed.
type ports map[string]string

const nothing = "nothing"

var (
	// The executor wants a token, httpd has no page.
	sandboxOpen   = ports{"tcp/80": "200", "tcp/5757": "404", "tcp/5758": "400", "tcp/5759": "404", "udp/5758": "200"}
	sandboxClosed = ports{"tcp/80": "200", "tcp/5757": "404", "tcp/5758": nothing, "tcp/5759": "404", "udp/5758": "200"}
	// Metrics and webhook want TLS, what answers the kubelet's probes has no such page.
	operatorOpen   = ports{"tcp/8443": "400", "tcp/9443": "400", "tcp/8081": "404"}
	operatorClosed = ports{"tcp/8443": "400", "tcp/9443": "400", "tcp/8081": nothing}
)

// knock connects to ports and says what the first line of each one's answer has as
// second word.
const knock = `
for target in %s; do
  line=$(timeout 2 bash -c "exec 3<>/dev/$target && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3" 2>/dev/null | tr -d '\r')
  read -r _ status _ <<<"$line"
  echo "${target##*/} ${status:-nothing}"
done`

// from is somewhere that connections come from.
type from struct {
	name    string
	command []string
}

func fromPod(ns, pod, container string) from {
	return from{ns + "/" + pod, []string{os.Getenv("KUBECTL"), "--namespace", ns, "exec", pod, "--container", container, "--", "bash", "-c"}}
}

// fromHost is outside of the network of pods, as the API server is.
var fromHost = from{"the host", []string{"bash", "-c"}}

func (f from) find(ip string, want ports) (ports, error) {
	var targets, names []string
	for name := range want {
		protocol, port, _ := strings.Cut(name, "/")
		targets, names = append(targets, protocol+"/"+ip+"/"+port), append(names, name)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(context.Background(), f.command[0], append(f.command[1:], fmt.Sprintf(knock, strings.Join(targets, " ")))...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, &errs)
	}
	got := ports{}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		_, got[names[i]], _ = strings.Cut(line, " ")
	}
	return got, nil
}

// untilFound knocks until the ports are as they should be: rules follow pods and
// policies a moment later.
func (f from) untilFound(t *testing.T, ip string, want ports) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		got, err := f.find(ip, want)
		require.NoError(c, err)
		require.Equal(c, want, got, "from %s to %s", f.name, ip)
	}, patience, poll)
}

// startClient starts a pod that connections can come from.
func startClient(t *testing.T, ns string, labels map[string]string) from {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "client-", Labels: labels}, Spec: restricted().Spec}
	pod.Spec.Containers[0].Image = "ubuntu:latest"
	require.NoError(t, api.Create(t.Context(), pod))
	t.Cleanup(func() { require.NoError(t, client.IgnoreNotFound(api.Delete(context.Background(), pod))) })
	until(t, pod, func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodRunning })
	return fromPod(ns, pod.Name, pod.Spec.Containers[0].Name)
}

// untilRunning waits for two pods with a label.
func untilRunning(t *testing.T, ns, label, value string) []corev1.Pod {
	t.Helper()
	var running []corev1.Pod
	untilPods(t, ns, func(pods []corev1.Pod) bool {
		running = slices.DeleteFunc(pods, func(pod corev1.Pod) bool {
			return pod.Labels[label] != value || pod.Status.Phase != corev1.PodRunning || pod.DeletionTimestamp != nil
		})
		return len(running) == 2
	})
	return running
}

// enforceNetworkPolicies does it until the end of the test.
func enforceNetworkPolicies(t *testing.T) {
	t.Helper()
	turn := func(state string) {
		cmd := exec.CommandContext(context.Background(), "../../bin/cluster", "network-policies", state)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		require.NoError(t, cmd.Run())
	}
	t.Cleanup(func() { turn("off") })
	turn("on")
}

// It runs alone: policies are enforced in the whole cluster meanwhile.
func TestNetworkPolicies(t *testing.T) {
	own, other := newNamespace(t), newNamespace(t)
	apply(t, own, chattyPool)
	operators := untilRunning(t, operatorNamespace, "control-plane", "controller-manager")
	sandboxes := untilRunning(t, own, v1alpha1.LabelPoolName, "chatty")
	operator, sandbox := operators[0].Status.PodIP, sandboxes[0].Status.PodIP
	strangers := []from{
		fromPod(own, sandboxes[1].Name, "udp"),
		// The operator's pods are told by namespace and labels; these have one of both.
		startClient(t, other, operators[0].Labels),
		startClient(t, operatorNamespace, nil),
		fromHost,
	}

	// Without enforcement, and then without the policy, what it closes is open.
	for _, stranger := range strangers {
		stranger.untilFound(t, operator, operatorOpen)
	}
	enforceNetworkPolicies(t)
	for _, stranger := range strangers {
		stranger.untilFound(t, operator, operatorClosed)
		stranger.untilFound(t, sandbox, sandboxOpen)
	}
	kubectl(t, "", "apply", "--namespace", own, "--filename", "../../config/samples/namespace/network_policy.yaml")
	for _, stranger := range strangers {
		stranger.untilFound(t, sandbox, sandboxClosed)
	}

	// The operator has had no connection to these executors before.
	bs := &v1alpha1.BatchSandbox{ObjectMeta: metav1.ObjectMeta{Namespace: own, Name: "batch"},
		Spec: v1alpha1.BatchSandboxSpec{Replicas: ptr.To(int32(2)), PoolRef: "chatty", TaskTemplate: script("true")}}
	require.NoError(t, api.Create(t.Context(), bs))
	until(t, bs, tasksCompleted)
	require.Equal(t, int32(2), bs.Status.TaskSucceed, "%+v", bs.Status.FailedTasks)

	misspelt := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"template":{"spec":{"hostnam":"x"}}}}`))
	pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: own, Name: "chatty"}}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		require.ErrorContains(c, api.Patch(context.Background(), pool.DeepCopy(), misspelt, client.DryRunAll), `unknown field "spec.hostnam"`)
	}, patience, poll, "the API server reaches the webhook")
}
