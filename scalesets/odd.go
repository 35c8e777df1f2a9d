// SPDX-License-Identifier: MIT

package scalesets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"

	"github.com/actions/scaleset"
)

var errNoStatistics = errors.New("the message has no statistics")

// oddMessage is one that was read and not understood.
type oddMessage struct{ id, times int }

// oddTimes is how often a message has to be read and not understood until it is passed over:
// an answer can be garbled on its way.
const oddTimes = 3

// passOver acknowledges a message that is not understood time and again, and returns its id:
// it would keep all behind it from being read, for ever. What it told of shows in GitHub's
// count of the set's jobs. Any other failure of a poll it returns as it is.
func (s *set) passOver(ctx context.Context, ses *scaleset.MessageSessionClient, failure error) (id int, err error) {
	var call *callError
	if !errors.As(failure, &call) || call.status/100 != 2 || call.message.ID == 0 {
		return 0, failure
	}
	if s.odd.id != call.message.ID {
		s.odd = oddMessage{id: call.message.ID}
	}
	if s.odd.times++; s.odd.times < oddTimes {
		return 0, failure
	}
	if err := s.call(ctx, "acknowledge a message", func(ctx context.Context) error { return ses.DeleteMessage(ctx, call.message.ID) }); err != nil {
		return 0, err
	}
	s.log.Error("message of the scale set's queue passed over: it is not understood", "message", call.message.ID, "type", clean(call.message.Type, 64))
	s.c.PassedOver(s.pool.Name)
	return call.message.ID, nil
}

// envelope is what names a message, whatever it holds.
type envelope struct {
	ID   int    `json:"messageId"`
	Type string `json:"messageType"`
}

// envelopeOf reads an answer that may be a message; its id is 0 if it is none.
func envelopeOf(answer []byte) envelope {
	var e envelope
	if json.Unmarshal(bytes.TrimPrefix(answer, []byte("\xef\xbb\xbf")), &e) != nil || e.ID <= 0 {
		return envelope{}
	}
	return e
}
