package olm

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

var podVerbs = []string{"create", "delete", "get", "list", "watch"}

// TestInstallModes installs the bundle in each mode that confines the operator to some
// namespaces: there it does all it can do, and nothing elsewhere.
func TestInstallModes(t *testing.T) {
	api, version := connect(t), environment(t, "VERSION")
	startOLM(t)
	catalog(t, bundle(t, version, environment(t, "IMG"), environment(t, "TASK_EXECUTOR_IMG")))
	install := func(t *testing.T, targets ...string) (elsewhere string) {
		t.Helper()
		elsewhere = newNamespace(t, api)
		subscribe(t, targets...)
		succeeded(t, api, namespace, version)
		sh(t, "kubectl -n "+elsewhere+" apply -f config/samples/pool.yaml")
		requireServed(t, api, targets...)
		requireLeftAlone(t, api, elsewhere)
		requireQuiet(t, api)
		return elsewhere
	}

	for _, mode := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"OwnNamespace", func(t *testing.T) {
			elsewhere := install(t, namespace)
			follow(t, "Remove from OLM", namespace)
			requireNothingLeft(t, api, elsewhere)
		}},
		{"SingleNamespace", func(t *testing.T) {
			target := newNamespace(t, api)
			elsewhere := install(t, target)
			follow(t, "Remove from OLM", namespace)
			requireNothingLeft(t, api, target, elsewhere)
		}},
		{"MultiNamespace", func(t *testing.T) {
			dropped, kept := newNamespace(t, api), newNamespace(t, api)
			added := install(t, dropped, kept)
			was := containers(t, api, kept)
			follow(t, "Change the namespaces", dropped)
			apply(t, operatorGroup(kept, added))
			// It finds the Pool that nobody cared for.
			pool := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Namespace: added, Name: "example-pool"}}
			until(t, api, pool, "the pool of the added namespace", func(p *v1alpha1.Pool) bool { return p.Status.Available > 0 })
			sh(t, "kubectl -n "+namespace+" rollout status deployment/"+deployment+" --timeout=180s")
			sh(t, "kubectl -n "+dropped+" wait rolebindings -l olm.copiedFrom="+namespace+" --for=delete --timeout=180s")
			sh(t, "kubectl -n "+dropped+" apply -f config/samples/pool.yaml")
			requireServed(t, api, kept, added)
			requireLeftAlone(t, api, dropped)
			requireSame(t, was, containers(t, api, kept))
			requireQuiet(t, api)
			follow(t, "Remove from OLM", namespace)
			requireNothingLeft(t, api, dropped, kept, added)
		}},
	} {
		require.True(t, t.Run(mode.name, mode.test), "the next mode wants a cluster without the operator")
	}
}

// requireServed sees that the operator does in the namespaces what it is for, and that it
// may do no more with Secrets than it must.
func requireServed(t *testing.T, api client.Client, namespaces ...string) {
	t.Helper()
	var held, working []*v1alpha1.BatchSandbox
	for _, namespace := range namespaces {
		held = append(held, pooled(t, namespace))
		working = append(working, tasks(namespace, "tasks-"+rand.String(5), "true"))
		require.NoError(t, api.Create(t.Context(), working[len(working)-1]))
	}
	for i, namespace := range namespaces {
		until(t, api, held[i], "the pooled example", ready)
		until(t, api, working[i], "its tasks succeed", func(bs *v1alpha1.BatchSandbox) bool { return bs.Status.TaskSucceed == 2 })
		requireExecutor(t, api, working[i], environment(t, "TASK_EXECUTOR_IMG"))
		require.ErrorContains(t, misspelt(t, api, namespace), unknownField)
		for _, verb := range podVerbs {
			require.True(t, may(t, api, verb, "pods", namespace), verb)
		}
		requireNoSecrets(t, api, namespace)
	}
}

// requireLeftAlone sees that the operator took no notice of the Pool in a namespace that
// is none of its own, and could have done nothing there. The caller has seen it done with
// what was created later.
func requireLeftAlone(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	pool := &v1alpha1.Pool{}
	require.NoError(t, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "example-pool"}, pool))
	require.Empty(t, pool.Finalizers)
	require.Zero(t, pool.Status)
	requireNoPods(t, api, namespace)
	require.NoError(t, misspelt(t, api, namespace), "the webhooks are not asked")
	for _, verb := range podVerbs {
		require.False(t, may(t, api, verb, "pods", namespace), verb)
	}
	require.False(t, may(t, api, "create", "secrets", namespace))
	require.False(t, may(t, api, "get", "secrets/opensandbox-executor-keys", namespace))
	requireNoSecrets(t, api, namespace)
}

func requireNoSecrets(t *testing.T, api client.Client, namespace string) {
	t.Helper()
	for _, verb := range []string{"list", "watch"} {
		require.False(t, may(t, api, verb, "secrets", namespace), verb)
		require.False(t, may(t, api, verb, "secrets", metav1.NamespaceAll), verb)
	}
	require.False(t, may(t, api, "get", "secrets/of-somebody-else", namespace))
}

// may asks the API server what the operator's service account is allowed. The resource
// may be followed by the name of an object.
func may(t *testing.T, api client.Client, verb, resource, in string) bool {
	t.Helper()
	resource, name, _ := strings.Cut(resource, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:" + namespace + ":" + deployment,
		Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: resource, Name: name, Namespace: in},
	}}
	require.NoError(t, api.Create(t.Context(), review))
	return review.Status.Allowed
}

// requireQuiet sees that the operator tried nothing that it may not do.
func requireQuiet(t *testing.T, api client.Client) {
	t.Helper()
	pods := &corev1.PodList{}
	require.NoError(t, api.List(t.Context(), pods, client.InNamespace(namespace), client.MatchingLabels{"control-plane": "controller-manager"}))
	pods.Items = slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	require.NotEmpty(t, pods.Items)
	for i := range pods.Items {
		pod := &pods.Items[i]
		require.Zero(t, pod.Status.ContainerStatuses[0].RestartCount, pod.Name)
		log := sh(t, "kubectl -n "+namespace+" logs "+pod.Name)
		require.NotEmpty(t, log)
		require.NotContains(t, strings.ToLower(log), "forbidden")
	}
}
