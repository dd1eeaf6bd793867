//! The 16550 on COM1.

use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use crate::q35::options::Serial;

/// Where every PC has its first serial port.
const COM1: u16 = 0x3f8;
/// How often a full transmitter is asked again before its byte, or the port, is given up: a missing port must not stop the machine.
const PATIENCE: u32 = 1_000_000;

/// The port, once it has been set up.
pub struct SerialPort {
    uart: Uart16550<PioBackend>,
}

impl SerialPort {
    /// Sets COM1 up with 8 data bits, no parity, 1 stop bit. `None` when there is no 16550.
    ///
    /// # Safety
    /// Nobody else uses the ports 0x3f8 to 0x3ff from now on.
    pub unsafe fn com1(settings: Serial) -> Option<Self> {
        // SAFETY: the ports are valid on every PC, and the caller keeps others away.
        let mut uart = unsafe { Uart16550::new_port(COM1) }.ok()?;
        let config = Config {
            baud_rate: BaudRate::from_integer(settings.baud),
            interrupts: IER::empty(),
            ..Config::DEFAULT
        };
        // `init` waits for the transmitter for as long as it takes: only for one that has been seen empty.
        let answers = uart.check_present() && Self::becomes_empty(&mut uart);
        (answers && uart.init(config).is_ok()).then_some(Self { uart })
    }

    /// Whether what firmware has sent is gone before our patience is.
    fn becomes_empty(uart: &mut Uart16550<PioBackend>) -> bool {
        (0..PATIENCE).any(|_| uart.lsr().contains(LSR::TRANSMITTER_EMPTY))
    }

    /// Sends bytes, waiting while the transmitter is full; a newline goes out as carriage return and newline.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut pieces = bytes.split(|&byte| byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.write_raw(piece);
            if pieces.peek().is_some() {
                self.write_raw(b"\r\n");
            }
        }
    }

    /// A byte that has arrived, if any.
    pub fn read(&mut self) -> Option<u8> {
        self.uart.try_receive_byte().ok()
    }

    fn write_raw(&mut self, mut bytes: &[u8]) {
        let mut patience = PATIENCE;
        while !bytes.is_empty() && patience > 0 {
            let sent = self.uart.send_bytes(bytes);
            bytes = bytes.get(sent..).unwrap_or(&[]);
            patience = if sent == 0 { patience - 1 } else { PATIENCE };
        }
    }
}
