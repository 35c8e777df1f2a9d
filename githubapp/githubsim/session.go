// SPDX-License-Identifier: MIT

package githubsim

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// sessionRequest is what a runner says of itself.
type sessionRequest struct {
	OwnerName string
	Agent     struct {
		Version       string
		OSDescription string
	}
}

// openSession starts a session; one that polls, or polled a moment ago, is in the way of another.
func (s *Sim) openSession(ru *runner, in sessionRequest, broker bool) *session {
	now := time.Now()
	if ru.session != nil && (ru.polls > 0 || now.Sub(ru.lastSeen) < s.timing.SessionTimeout) {
		return nil
	}
	if j := ru.job; j != nil {
		s.withdraw(j)
	}
	ru.session, ru.lastSeen = &session{id: newGUID(), broker: broker}, now
	ru.version = orString(in.Agent.Version, ru.version)
	switch desc := strings.ToLower(in.Agent.OSDescription); {
	case strings.Contains(desc, "darwin"), strings.Contains(desc, "mac"):
		ru.os = "macOS"
	case strings.Contains(desc, "linux"):
		ru.os = "Linux"
	}
	if ru.onlineAt.IsZero() {
		ru.onlineAt = now
	}
	s.watchOnline(ru)
	s.log.Info("runner online", "runner", ru.name, "broker", broker)
	s.change()
	return ru.session
}

// watchOnline tells those who wait when a runner goes offline for want of polls.
func (s *Sim) watchOnline(ru *runner) {
	opened := ru.session
	s.later(s.timing.OfflineAfter, func() {
		if ru.removed() || ru.session != opened {
			return
		}
		if !ru.alive(time.Now(), s.timing.OfflineAfter) {
			s.change()
		}
		s.watchOnline(ru)
	})
}

func (s *Sim) closeSession(ru *runner) {
	if j := ru.job; j != nil {
		s.withdraw(j)
	}
	ru.session = nil
	ru.signal()
	s.log.Info("runner offline", "runner", ru.name)
	s.assign()
	s.change()
}

func sessionBody(ru *runner, in sessionRequest, id string) object {
	return object{
		"sessionId": id, "ownerName": orString(in.OwnerName, "RUNNER"), "encryptionKey": nil, "useFipsEncryption": false,
		"agent": object{"id": ru.id, "name": ru.name, "version": orString(ru.version, runnerVersion), "ephemeral": true, "enabled": true, "status": 0},
	}
}

// encryptKey gives a session an AES key, wrapped for the runner alone.
func (ses *session) encryptKey(ru *runner) (object, error) {
	ses.aesKey = make([]byte, 32)
	rand.Read(ses.aesKey) // never fails: it aborts the program instead
	wrapped, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, &ru.key.PublicKey, ses.aesKey, nil)
	if err != nil {
		return nil, err
	}
	return object{"encrypted": true, "value": base64.StdEncoding.EncodeToString(wrapped)}, nil
}

// encrypt is AES-CBC with PKCS #7 padding.
func (ses *session) encrypt(body []byte) (iv, text string, err error) {
	block, err := aes.NewCipher(ses.aesKey)
	if err != nil {
		return "", "", err
	}
	vector := make([]byte, aes.BlockSize)
	rand.Read(vector)
	pad := aes.BlockSize - len(body)%aes.BlockSize
	plain := append(bytes.Clone(body), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, vector).CryptBlocks(plain, plain)
	return base64.StdEncoding.EncodeToString(vector), base64.StdEncoding.EncodeToString(plain), nil
}

// send queues a message for a runner's session. The caller holds mu.
func (s *Sim) send(ru *runner, kind string, body []byte) {
	ru.session.queue = append(ru.session.queue, &message{id: s.newID(), kind: kind, body: body})
	ru.signal()
}

// cancelAgainAfter is when a cancellation, which the broker's clients do not
// acknowledge, is sent once more.
const cancelAgainAfter = 10 * time.Second

// nextMessage is the first message that is to be sent now. One that has been
// sent is sent again until the runner deletes or acknowledges it.
func (ses *session) nextMessage(now time.Time) *message {
	for _, m := range ses.queue {
		if m.kind == "JobCancellation" && now.Sub(m.sentAt) < cancelAgainAfter {
			continue
		}
		m.sentAt = now
		return m
	}
	return nil
}

// poll is the long poll of both services.
func (s *Sim) poll(w http.ResponseWriter, r *http.Request, broker bool) {
	ru, ses, seq, ok := s.beginPoll(w, r, broker)
	if !ok {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ru.polls--
		ru.lastSeen = time.Now()
	}()
	s.longPoll(w, r, ru.wake, func() bool { return s.stepPoll(w, r, ru, ses, seq, broker) })
}

// longPoll looks for something to answer a poll with, and again at each wake, until there is or
// its time is over.
func (s *Sim) longPoll(w http.ResponseWriter, r *http.Request, wake <-chan struct{}, step func() (done bool)) {
	timer := time.NewTimer(s.timing.Poll)
	defer timer.Stop()
	for !step() {
		select {
		case <-wake:
		case <-timer.C:
			w.WriteHeader(http.StatusAccepted) // nothing to say; the body is empty
			return
		case <-r.Context().Done():
			return
		case <-s.ctx.Done():
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
	}
}

// beginPoll checks who polls, and takes over from an older poll of the same session.
func (s *Sim) beginPoll(w http.ResponseWriter, r *http.Request, broker bool) (*runner, *session, int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, known := s.runnerTokens[bearer(r)]
	ru := token.of
	switch {
	case known && ru.removed():
		runnerGone(w, broker)
		return nil, nil, 0, false
	case !known || time.Now().After(token.expires):
		serviceError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token is unknown or has expired.")
		return nil, nil, 0, false
	case ru.session == nil || ru.session.id != r.URL.Query().Get("sessionId"):
		sessionGone(w, broker)
		return nil, nil, 0, false
	}
	ru.polls++
	ru.pollSeq++
	ru.lastSeen = time.Now()
	ru.signal() // an older poll leaves
	s.assign()
	return ru, ru.session, ru.pollSeq, true
}

// stepPoll looks once for something to answer a poll with.
func (s *Sim) stepPoll(w http.ResponseWriter, r *http.Request, ru *runner, ses *session, seq int, broker bool) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Context().Err() != nil:
		ru.signal() // the wake was for the poll that follows this one
		return true
	case ru.pollSeq != seq:
		ru.signal()
		w.WriteHeader(http.StatusAccepted)
		return true
	case ru.removed():
		runnerGone(w, broker)
		return true
	case ru.session != ses:
		sessionGone(w, broker)
		return true
	}
	m := ses.nextMessage(time.Now())
	if m == nil {
		return false
	}
	body := object{"messageId": m.id, "messageType": m.kind, "body": string(s.messageBody(ru, m, s.runnerBase(r)))}
	if ses.aesKey != nil {
		iv, text, err := ses.encrypt([]byte(body["body"].(string)))
		if err != nil {
			serviceError(w, http.StatusInternalServerError, "CryptographicException", err.Error())
			return true
		}
		body["iv"], body["body"] = iv, text
	}
	s.log.Debug("message sent", "runner", ru.name, "kind", m.kind)
	reply(w, http.StatusOK, body)
	return true
}

func runnerGone(w http.ResponseWriter, broker bool) {
	if broker {
		brokerError(w, http.StatusNotFound, "RunnerNotFound", "The runner was not found.")
		return
	}
	serviceError(w, http.StatusForbidden, "AccessDeniedException", "Access denied. The identity needs View permissions to perform the action.")
}

func sessionGone(w http.ResponseWriter, broker bool) {
	if broker {
		brokerError(w, http.StatusNotFound, "RunnerSessionInvalid", "The session is invalid or has expired.")
		return
	}
	serviceError(w, http.StatusNotFound, "TaskAgentSessionExpiredException", "The session has expired.")
}

func readJSON[T any](r *http.Request) (v T) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyLimit))
	if err == nil {
		_ = json.Unmarshal(body, &v) // what cannot be read stays empty, as in the real service
	}
	return v
}
