package olm

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// subscribe applies what users apply, for these namespaces or, without any, for all. The
// catalog is the test's own.
func subscribe(t *testing.T, targets ...string) {
	t.Helper()
	enforce := "restricted"
	if slices.Contains(targets, namespace) {
		enforce = "privileged" // the sandboxes live there, too
	}
	apply(t, `
apiVersion: v1
kind: Namespace
metadata:
  name: `+namespace+`
  labels: {pod-security.kubernetes.io/enforce: `+enforce+`}
---
apiVersion: operators.coreos.com/v1alpha1
kind: CatalogSource
metadata: {name: opensandbox, namespace: `+namespace+`}
spec: {sourceType: grpc, address: "127.0.0.1:`+catalogPort+`"}
---`+operatorGroup(targets...)+`---
apiVersion: operators.coreos.com/v1alpha1
kind: Subscription
metadata: {name: opensandbox-operator, namespace: `+namespace+`}
spec: {channel: stable, name: opensandbox-operator, source: opensandbox, sourceNamespace: `+namespace+`}
`)
}

func operatorGroup(targets ...string) string {
	spec := ""
	if len(targets) > 0 {
		spec = "targetNamespaces: [" + strings.Join(targets, ", ") + "]"
	}
	return `
apiVersion: operators.coreos.com/v1
kind: OperatorGroup
metadata: {name: opensandbox, namespace: ` + namespace + `}
spec: {` + spec + `}
`
}

// read reads an object of the operator's namespace.
func read(t *testing.T, group, version, kind, name string) (*unstructured.Unstructured, error) {
	t.Helper()
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	return obj, api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, obj)
}

// readCSV reads the object from which OLM installs a version, and where it says how that goes.
func readCSV(t *testing.T, version string) (*unstructured.Unstructured, error) {
	t.Helper()
	return read(t, "operators.coreos.com", "v1alpha1", "ClusterServiceVersion", "opensandbox-operator.v"+version)
}

// untilSucceeded waits until OLM says that the version is installed.
func untilSucceeded(t *testing.T, version string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		csv, err := readCSV(t, version)
		require.NoError(c, err)
		phase, _, _ := unstructured.NestedString(csv.Object, "status", "phase")
		message, _, _ := unstructured.NestedString(csv.Object, "status", "message")
		require.Equal(c, "Succeeded", phase, message)
	}, "ClusterServiceVersion v%s", version)
}

// untilCertified waits until the webhooks' certificate is one that OLM made for the version.
func untilCertified(t *testing.T, version string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		secret, err := read(t, "", "v1", "Secret", deployment+"-service-cert")
		require.NoError(c, err)
		owners := secret.GetOwnerReferences()
		require.Len(c, owners, 1)
		require.Equal(c, "opensandbox-operator.v"+version, owners[0].Name)
	}, "the certificate belongs to ClusterServiceVersion v%s", version)
}

// untilGone waits until OLM has taken a version away.
func untilGone(t *testing.T, version string) {
	t.Helper()
	eventually(t, func(c *assert.CollectT) {
		_, err := readCSV(t, version)
		require.True(c, apierrors.IsNotFound(err), "%v", err)
	}, "ClusterServiceVersion v%s is gone", version)
}
