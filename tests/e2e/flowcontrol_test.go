package e2e

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The API server names the flow schema by which it has ordered a request in a header of its
// answer. Nothing here exists: what is asked for by a name that nobody has was ordered all the same.
func TestTheOperatorsRequestsAreOrdered(t *testing.T) {
	ns := newNamespace(t)
	asOperator := rest.CopyConfig(cluster)
	asOperator.Impersonate.UserName = "system:serviceaccount:" + operatorNamespace + ":opensandbox-controller-manager"
	asOperator.Impersonate.Groups = []string{"system:serviceaccounts", "system:authenticated"}
	requests, err := rest.HTTPClientFor(asOperator)
	require.NoError(t, err)
	for _, test := range []struct{ method, path, schema string }{
		{http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/" + operatorNamespace + "/leases/none", "opensandbox-leader"},
		{http.MethodPatch, "/apis/sandbox.opensandbox.io/v1alpha1/namespaces/" + ns + "/batchsandboxes/none", "opensandbox-hand-outs"},
		{http.MethodPatch, "/apis/sandbox.opensandbox.io/v1alpha1/namespaces/" + ns + "/batchsandboxes/none/status", "opensandbox-hand-outs"},
		{http.MethodDelete, "/api/v1/namespaces/" + ns + "/pods/none", "opensandbox-pods"},
	} {
		schema := &flowcontrolv1.FlowSchema{}
		require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: test.schema}, schema))
		req, err := http.NewRequestWithContext(t.Context(), test.method, cluster.Host+test.path, http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/merge-patch+json")
		answer, err := requests.Do(req)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		assert.Equal(t, string(schema.UID), answer.Header.Get(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID), "%s %s", test.method, test.path)
	}
}
