package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// apiServerName is the common name of the API server's client certificate.
const apiServerName = "api-server-of-the-tests"

// authority signs client certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	// file has the certificate, and admission is the API server's configuration with a
	// client certificate of it.
	file, admission string
}

// newAuthority also writes what an administrator gives to the API server, as
// docs/operations.md says it.
func newAuthority(folder string) (*authority, error) {
	a := &authority{file: filepath.Join(folder, "clients.crt"), admission: filepath.Join(folder, "admission.yaml")}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clients"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	shown, err := a.sign(apiServerName)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(shown.PrivateKey)
	if err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(folder, "webhooks.kubeconfig")
	plugin := "- name: %s\n  configuration: {apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, kubeConfigFile: " + kubeconfig + "}\n"
	for file, text := range map[string][]byte{
		a.file:                                 pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		filepath.Join(folder, "apiserver.crt"): pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shown.Certificate[0]}),
		filepath.Join(folder, "apiserver.key"): pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		kubeconfig:                             []byte("apiVersion: v1\nkind: Config\nusers:\n- name: '*'\n  user: {client-certificate: apiserver.crt, client-key: apiserver.key}\n"),
		a.admission:                            []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n" + fmt.Sprintf(plugin, "ValidatingAdmissionWebhook") + fmt.Sprintf(plugin, "MutatingAdmissionWebhook")),
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// sign returns a client certificate for the common name.
func (a *authority) sign(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// asked keeps which paths the operator has asked the API server for.
var asked paths

type paths struct {
	mu    sync.Mutex // guards texts
	texts []string
}

// wrap implements transport.WrapperFunc.
func (p *paths) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		p.mu.Lock()
		p.texts = append(p.texts, r.Method+" "+r.URL.Path)
		p.mu.Unlock()
		return next.RoundTrip(r)
	})
}

// in returns those of a namespace.
func (p *paths) in(namespace string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []string
	for _, text := range p.texts {
		if strings.Contains(text, "/namespaces/"+namespace+"/") {
			found = append(found, text)
		}
	}
	return found
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// forge posts a review of an object, as YAML, to the webhooks as somebody who shows the
// certificates. It returns nil where it is not answered, and the status.
func forge(t *testing.T, path string, operation admissionv1.Operation, namespace, object string, shown ...tls.Certificate) (*admissionv1.AdmissionResponse, int) {
	t.Helper()
	return forgeAt(t, env.WebhookInstallOptions.LocalServingPort, path, operation, namespace, object, shown...)
}

// forgeAt posts to the webhooks at another port.
func forgeAt(t *testing.T, port int, path string, operation admissionv1.Operation, namespace, object string, shown ...tls.Certificate) (*admissionv1.AdmissionResponse, int) {
	t.Helper()
	review := admissionv1.AdmissionReview{Request: &admissionv1.AdmissionRequest{UID: types.UID(rand.Text()), Operation: operation, Namespace: namespace, Name: "it"}}
	review.SetGroupVersionKind(admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"))
	raw := toJSON(t, object)
	if operation == admissionv1.Delete {
		review.Request.OldObject = runtime.RawExtension{Raw: raw}
		review.Request.Options = runtime.RawExtension{Raw: []byte(`{"propagationPolicy":"Foreground"}`)}
	} else {
		review.Request.Object = runtime.RawExtension{Raw: raw}
	}
	body, err := json.Marshal(review)
	require.NoError(t, err)
	sender := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true,
		Certificates:       shown,
	}}}
	response, err := sender.Post(fmt.Sprintf("https://%s:%d%s", env.WebhookInstallOptions.LocalServingHost, port, path), "application/json", bytes.NewReader(body))
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return nil, response.StatusCode
	}
	var answer admissionv1.AdmissionReview
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
	return answer.Response, response.StatusCode
}

const (
	validateBatchSandbox = "/validate-sandbox-opensandbox-io-v1alpha1-batchsandbox"
	validatePool         = "/validate-sandbox-opensandbox-io-v1alpha1-pool"
)

// Everything else in this package shows that the API server's own reviews are answered.
func TestAForgedReviewAsksTheAPIServerForNothing(t *testing.T) {
	ns := newNamespace(t)
	other, err := newAuthority(t.TempDir())
	require.NoError(t, err)
	genuine, err := clients.sign(apiServerName)
	require.NoError(t, err)
	misnamed, err := clients.sign("node")
	require.NoError(t, err)
	stranger, err := other.sign(apiServerName)
	require.NoError(t, err)
	fromTemplate := `{metadata: {namespace: ` + ns + `, name: it}, spec: {template: ` + good + `}}`
	fromPool := `{metadata: {namespace: ` + ns + `, name: it}, spec: {poolRef: guessed}}`
	for name, shown := range map[string][]tls.Certificate{"none": nil, "another's": {stranger}, "another name": {misnamed}} {
		for _, object := range []string{fromTemplate, fromPool} {
			_, status := forge(t, validateBatchSandbox, admissionv1.Create, ns, object, shown...)
			require.Equal(t, http.StatusUnauthorized, status, name)
		}
		_, status := forge(t, validatePool, admissionv1.Create, ns, `{metadata: {namespace: `+ns+`, name: it}, spec: {template: `+good+`}}`, shown...)
		require.Equal(t, http.StatusUnauthorized, status, name)
	}
	require.Empty(t, asked.in(ns))

	for _, object := range []string{fromTemplate, fromPool} {
		_, status := forge(t, validateBatchSandbox, admissionv1.Create, ns, object, genuine)
		require.Equal(t, http.StatusOK, status)
	}
	require.Equal(t, []string{
		"POST /api/v1/namespaces/" + ns + "/pods", "GET /apis/sandbox.opensandbox.io/v1alpha1/namespaces/" + ns + "/pools/guessed",
	}, asked.in(ns), "with the API server's certificate they would have been asked for")
}

// Also where no client certificate is asked for.
func TestAForgedDeletionIsToldNoNames(t *testing.T) {
	ns := newNamespace(t)
	pool, err := create(t, ns, "Pool", `{spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	bs, err := create(t, ns, "BatchSandbox", `{metadata: {name: holder}, spec: {poolRef: it}}`)
	require.NoError(t, err)
	hold := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerPoolAllocation+`"],"annotations":{"`+v1alpha1.AnnotationAllocStatus+`":"{\"pods\":[\"a\"]}"}}}`))
	require.NoError(t, api.Patch(t.Context(), bs, hold))
	genuine, err := clients.sign(apiServerName)
	require.NoError(t, err)
	of := func(uid types.UID) string {
		return fmt.Sprintf(`{metadata: {namespace: %s, name: it, uid: "%s"}}`, ns, uid)
	}
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		response, status := forge(t, validatePool, admissionv1.Delete, ns, of(pool.GetUID()), genuine)
		require.Equal(c, http.StatusOK, status)
		require.False(c, response.Allowed)
		require.Contains(c, response.Result.Message, "BatchSandbox holder")
	}, patience, poll, "the webhook reads a cache")
	for _, uid := range []types.UID{"", "guessed"} {
		response, status := forge(t, validatePool, admissionv1.Delete, ns, of(uid), genuine)
		require.Equal(t, http.StatusOK, status)
		require.True(t, response.Allowed)
		require.NotContains(t, fmt.Sprint(response), "holder")
	}
}

// One operator's webhooks serve the namespaces of the others, too.
func TestWhatAnotherOperatorWatchesIsCheckedToo(t *testing.T) {
	ns := newNamespace(t)
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", env.WebhookInstallOptions.LocalServingHost+":0")
	require.NoError(t, err)
	port := free.Addr().(*net.TCPAddr).Port
	require.NoError(t, free.Close())
	stop, err := serveAt(context.Background(), port, cache.Options{DefaultNamespaces: map[string]cache.Config{metav1.NamespaceDefault: {}}}, nil)
	require.NoError(t, err)
	t.Cleanup(stop)
	pool, err := create(t, ns, "Pool", `{spec: {template: `+good+`, `+capacity+`}}`)
	require.NoError(t, err)
	review := func(uid types.UID) *admissionv1.AdmissionResponse {
		response, status := forgeAt(t, port, validatePool, admissionv1.Delete, ns, fmt.Sprintf(`{metadata: {namespace: %s, name: it, uid: "%s"}}`, ns, uid))
		require.Equal(t, http.StatusOK, status)
		return response
	}
	require.True(t, review(pool.GetUID()).Allowed, "nobody holds a sandbox")
	for name, warned := range map[string]bool{"it": false, "missing": true} {
		response, status := forgeAt(t, port, validateBatchSandbox, admissionv1.Create, ns, fmt.Sprintf(`{metadata: {namespace: %s, name: it}, spec: {poolRef: %s}}`, ns, name))
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, warned, strings.Contains(fmt.Sprint(response.Warnings), "there is no Pool "+name), "%v", response.Warnings)
	}

	bs, err := create(t, ns, "BatchSandbox", `{metadata: {name: holder}, spec: {poolRef: it}}`)
	require.NoError(t, err)
	hold := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":["`+v1alpha1.FinalizerPoolAllocation+`"],"annotations":{"`+v1alpha1.AnnotationAllocStatus+`":"{\"pods\":[\"a\"]}"}}}`))
	require.NoError(t, api.Patch(t.Context(), bs, hold))
	refused := review(pool.GetUID())
	require.False(t, refused.Allowed)
	require.Contains(t, refused.Result.Message, "BatchSandbox holder")
	guessed := review("guessed")
	require.True(t, guessed.Allowed)
	require.NotContains(t, fmt.Sprint(guessed), "holder")
}

func toJSON(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	return raw
}
