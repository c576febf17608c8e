// Package keyring holds the keys that the operator signs its requests to task
// executors with. They live in one Secret of the operator's namespace: one entry
// for each key, by its id, and an entry "current" that names the one that new pods
// are built with. A pod names the key that it was built with, so keys can be
// rotated: take the entry "current" away and restart the operator, which makes a
// new key; take the old key away when no pod of it is left.
package keyring

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/executor/token"
)

const (
	// SecretName of the keys. The operator's Role names it.
	SecretName = "opensandbox-executor-keys"
	// currentEntry names the key that new pods are built with.
	currentEntry = "current"
	// loadAttempts bounds how often another replica may be quicker.
	loadAttempts = 5
)

// Keyring holds the keys. The zero value has none; it is safe for concurrent use.
type Keyring struct {
	mu      sync.Mutex // guards the fields below
	signers map[string]*token.Signer
	current *token.Signer
}

// Load reads the keys, and makes a key where there is none yet. Without a namespace
// the key is this process's alone, and pods with an executor do not outlive it.
func (k *Keyring) Load(ctx context.Context, reader client.Reader, writer client.Client, namespace string) error {
	if namespace == "" {
		fresh, err := token.GenerateKey()
		if err != nil {
			return fmt.Errorf("making a key: %w", err)
		}
		return k.use(token.NewSigner(fresh).KeyID(), []ed25519.PrivateKey{fresh})
	}
	var err error
	for range loadAttempts {
		if err = k.load(ctx, reader, writer, types.NamespacedName{Namespace: namespace, Name: SecretName}); err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return fmt.Errorf("keys of the task executors in Secret %s/%s: %w", namespace, SecretName, err)
}

func (k *Keyring) load(ctx context.Context, reader client.Reader, writer client.Client, name types.NamespacedName) error {
	secret := &corev1.Secret{}
	err := reader.Get(ctx, name, secret)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return fmt.Errorf("reading: %w", err)
	}
	current, keys, err := parse(secret.Data)
	if err != nil {
		return err
	}
	if current != "" {
		return k.use(current, keys)
	}
	fresh, err := token.GenerateKey()
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	text, err := token.FormatPrivateKey(fresh)
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	current = token.NewSigner(fresh).KeyID()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[current], secret.Data[currentEntry] = text, []byte(current)
	if missing {
		secret.ObjectMeta = metav1.ObjectMeta{
			Namespace: name.Namespace, Name: name.Name,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		}
		err = writer.Create(ctx, secret)
	} else {
		err = writer.Update(ctx, secret) // with the resourceVersion read
	}
	if err != nil {
		return fmt.Errorf("storing a new key: %w", err)
	}
	return k.use(current, append(keys, fresh))
}

// parse returns the id of the current key, empty where there is none, and all keys.
func parse(data map[string][]byte) (string, []ed25519.PrivateKey, error) {
	current := string(data[currentEntry])
	var keys []ed25519.PrivateKey
	found := current == ""
	for entry, text := range data {
		if entry == currentEntry {
			continue
		}
		key, err := token.ParsePrivateKey(text)
		if err != nil {
			return "", nil, fmt.Errorf("entry %q: %w", entry, err)
		}
		if id := token.NewSigner(key).KeyID(); id != entry {
			return "", nil, fmt.Errorf("entry %q holds the key of id %s", entry, id)
		}
		found = found || entry == current
		keys = append(keys, key)
	}
	if !found {
		return "", nil, fmt.Errorf("entry %q names key %q, which is not there", currentEntry, current)
	}
	return current, keys, nil
}

func (k *Keyring) use(current string, keys []ed25519.PrivateKey) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signers = map[string]*token.Signer{}
	for _, key := range keys {
		signer := token.NewSigner(key)
		k.signers[signer.KeyID()] = signer
	}
	if k.current = k.signers[current]; k.current == nil {
		return errors.New("the current key is missing")
	}
	return nil
}

// PodKey makes the key by which the executor of one pod proves itself. It is nowhere but
// in the pod.
func PodKey() (ed25519.PrivateKey, error) { return token.GenerateKey() }

// Current is the key that new pods are built with; nil before the keys are loaded.
func (k *Keyring) Current() *token.Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

// Signer returns the key of that id, or nil.
func (k *Keyring) Signer(id string) *token.Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.signers[id]
}
